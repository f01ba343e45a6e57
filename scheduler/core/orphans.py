"""Kernels that nobody holds: their Jupyter Server has ended, and none has adopted them yet. Idle ones end early."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from roost.launchers.daemon.tasks import Timers, cancel_all, spawn
from roost.launchers.protocol.messages import KernelUse, Lease
from roost.placement.format import format_age
from roost.scheduler.config.settings import Settings

from .ender import KernelEnder
from .kernel_record import KernelRecord
from .kernel_table import KernelTable
from .owner_watch import OwnerWatch

log = logging.getLogger(__name__)

ReadUse = Callable[[Sequence[Lease]], Awaitable[Mapping[str, KernelUse]]]

_LOOKS = 20
"""An idle kernel is looked at about so often before it ends."""
_LONGEST_PAUSE_S = 60.0


class OrphanCuller:
    """Ends a kernel that nobody holds once it has been idle for as long as the settings say."""

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
        owners.on_orphans = self._look_later

    async def close(self) -> None:
        await cancel_all(self._tasks)

    def _look_later(self) -> None:
        shortest_s = min(self._settings.orphan_idle_after_s, self._settings.orphan_idle_gpu_after_s)
        pause_s = min(max(shortest_s / _LOOKS, 0.1), _LONGEST_PAUSE_S)
        if "orphans" not in self._timers:
            self._timers.later(pause_s, lambda: spawn(self._look(), self._tasks, log), key="orphans")

    async def _look(self) -> None:
        orphans = [record for record in self._table.records.values() if self._is_orphan(record)]
        if not orphans:
            return
        use = await self._read_use([record.lease for record in orphans if record.lease is not None])
        for record in orphans:
            if record.kernel_id in use and self._is_orphan(record):
                self._end_if_idle(record, use[record.kernel_id])
        self._look_later()

    def _is_orphan(self, record: KernelRecord) -> bool:
        return record.runs and record.end is None and not self._owners.is_alive(record.owner)

    def _end_if_idle(self, record: KernelRecord, use: KernelUse) -> None:
        settings = self._settings
        limit_s = settings.orphan_idle_gpu_after_s if record.request.gpus else settings.orphan_idle_after_s
        unheld_s = time.monotonic() - (-math.inf if record.unheld_since is None else record.unheld_since)
        if use.execution_state != "busy" and min(use.idle_s, unheld_s) >= limit_s:
            reason = f"culled: idle for {format_age(limit_s)}, and its Jupyter Server has not come back"
            self._table.publish("cull", record, reason)
            self._ender.stop_soon(record, reason)
