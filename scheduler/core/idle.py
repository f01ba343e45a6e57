"""The end of idle kernels, after a warning."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import Timers, cancel_all
from roost.launchers.protocol.messages import KernelUse, Lease
from roost.placement.model.format import format_age
from roost.scheduler.config.settings import Settings
from roost.scheduler.messages import format_time

from .ender import KernelEnder
from .kernel_record import KernelRecord
from .kernel_table import KernelTable
from .owner_watch import OwnerWatch

log = logging.getLogger(__name__)

ReadUse = Callable[[Sequence[Lease]], Awaitable[Mapping[str, KernelUse]]]

_LOOKS = 20
"""An idle kernel is checked about this many times before it is ended."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 60.0
_WARNING, _MOST_WARNING_S = 0.2, 300.0
"""How long before the end the warning comes: a share of the idle limit, and at most this many seconds."""


class IdleCuller:
    """Ends a kernel that has been idle for as long as the settings say.

    A kernel is idle while it runs no cell, and neither it nor a process that it has started uses a CPU or a
    GPU.
    """

    def __init__(
        self,
        table: KernelTable,
        ender: KernelEnder,
        owners: OwnerWatch,
        read_use: ReadUse,
        timers: Timers,
        settings: Settings,
    ) -> None:
        self._table = table
        self._ender = ender
        self._owners = owners
        self._read_use = read_use
        self._timers = timers
        self._settings = settings
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ends_at: dict[tuple[str, str], float] = {}
        """The moment (`time.monotonic`) that the warning about a launch named, while its kernel stays idle."""
        owners.listen(self._on_orphans)
        table.listen("ran", self._on_run)

    async def close(self) -> None:
        await cancel_all(self._tasks)

    def _on_run(self, record: KernelRecord) -> None:
        limit_s = self._find_limit(record)
        if limit_s is not None:
            self._look_later(limit_s)

    def _on_orphans(self) -> None:
        self._look_later(min(self._settings.orphan_idle_after_s, self._settings.orphan_idle_gpu_after_s))

    def _look_later(self, limit_s: float) -> None:
        """Plan a check of all kernels, soon enough for an idle limit of `limit_s`. May be repeated."""
        if "idle" not in self._timers:
            pause_s = min(max(limit_s / _LOOKS, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
            self._timers.later(pause_s, self._look_again, key="idle")

    def _look_again(self) -> None:
        keep_running(self._look, self._tasks, log, "the look at idle kernels")

    async def _look(self) -> None:
        limits_s = {
            record: limit_s
            for record in self._table.records.values()
            if (limit_s := self._find_limit(record)) is not None
        }
        use = await self._read_use([record.lease for record in limits_s if record.lease is not None])
        for record in limits_s:
            limit_s = self._find_limit(record)  # it may have been adopted, or have ended, meanwhile
            if limit_s is not None and record.kernel_id in use:
                self._judge(record, use[record.kernel_id], limit_s)
        launches = set(map(_name_launch, limits_s))
        self._ends_at = {launch: at for launch, at in self._ends_at.items() if launch in launches}
        if limits_s:
            self._look_later(min(limits_s.values()))

    def _find_limit(self, record: KernelRecord) -> float | None:
        """Return how long this kernel may be idle; None if it has no limit or does not run."""
        if not record.runs or record.end is not None or record.is_stopped:
            return None
        settings, has_gpu = self._settings, bool(record.request.gpus)
        limits: list[float | None] = [settings.idle_after_s]
        if has_gpu:
            limits.append(settings.idle_gpu_after_s)
        if not self._owners.is_alive(record.owner):
            limits.append(settings.orphan_idle_gpu_after_s if has_gpu else settings.orphan_idle_after_s)
        return min((limit_s for limit_s in limits if limit_s is not None), default=None)

    def _judge(self, record: KernelRecord, use: KernelUse, limit_s: float) -> None:
        idle_s = 0.0 if use.execution_state == "busy" else min(use.idle_s, use.quiet_s)
        reason = f"culled: idle for longer than {format_age(limit_s)}"
        if not self._owners.is_alive(record.owner):
            unheld_s = time.monotonic() - (-math.inf if record.unheld_since is None else record.unheld_since)
            idle_s = min(idle_s, unheld_s)
            reason += ", and its Jupyter Server has not come back"
        launch = _name_launch(record)
        warning_s = min(_WARNING * limit_s, _MOST_WARNING_S)
        ends_at = self._ends_at.get(launch)
        if limit_s - idle_s > warning_s:
            self._ends_at.pop(launch, None)
            if record.idle_prospect:
                record.idle_prospect = ""
                self._table.publish("warned", record, "is used again")
        elif ends_at is None:
            # The whole time, also if the kernel is idle for longer: a limit is new, or the scheduler is.
            self._ends_at[launch] = time.monotonic() + warning_s
            at = format_time(time.time() + warning_s)
            record.idle_prospect = f"it is idle; it ends at {at} unless it is used"
            ends = f"it ends in {format_age(warning_s)} unless it is used"
            self._table.publish("warned", record, f"has been idle for {format_age(idle_s)}; {ends}")
        elif time.monotonic() >= ends_at and idle_s >= limit_s:
            self._table.publish("cull", record, reason)
            record.is_stopped = True
            self._ender.stop_soon(record, reason)


def _name_launch(record: KernelRecord) -> tuple[str, str]:
    return record.kernel_id, record.launch_id
