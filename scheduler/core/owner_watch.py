"""Owners: whether the applications that hold kernels still live, and the rules for the kernels of an ended one.

A pid and a start time name an application's process. Both are in the agents' records, so a restarted scheduler watches
the same processes again. All clients come over a Unix socket, so they are on this machine, whatever its host name is
today. An owner without a pid cannot be watched and counts as alive.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from roost.launchers.daemon.process import Watch
from roost.launchers.daemon.tasks import Timers, cancel_all, spawn
from roost.launchers.protocol.messages import Owner

from .ender import KernelEnder
from .kernel_record import KernelRecord
from .kernel_table import KernelTable

log = logging.getLogger(__name__)

OwnerKey = tuple[str, int, float]
"""Host, pid and start time: they tell one application process from all others."""


@dataclass(slots=True, kw_only=True)
class _Watched:
    watch: Watch
    is_alive: bool = True


def owner_key(owner: Owner) -> OwnerKey:
    """Return the key of the owner's process."""
    return owner.host, owner.pid, owner.process_started_at


class OwnerWatch:
    """Watches owners' processes. `on_death` is called once for each process that ends, with its key."""

    def __init__(self) -> None:
        self.on_death: Callable[[OwnerKey], None] = lambda _: None
        self._watched: dict[OwnerKey, _Watched] = {}

    def watch(self, owner: Owner) -> None:
        """Watch this owner from now on. May be repeated."""
        key = owner_key(owner)
        if key in self._watched or not owner.pid:
            return

        def ended() -> None:
            self._watched[key].is_alive = False
            log.info("owner=%s pid=%d has ended", owner.application or owner.user, owner.pid)
            self.on_death(key)

        self._watched[key] = _Watched(watch=Watch(owner.pid, owner.process_started_at, ended))

    def is_alive(self, owner: Owner) -> bool:
        """True unless the owner's process is known to have ended."""
        watched = self._watched.get(owner_key(owner))
        return watched is None or watched.is_alive

    def forget(self, key: OwnerKey) -> None:
        """Stop watching an owner that has no kernels left. May be repeated."""
        watched = self._watched.pop(key, None)
        if watched is not None:
            watched.watch.close()

    def close(self) -> None:
        for key in list(self._watched):
            self.forget(key)


class OwnerRules:
    """The rules for kernels of an ended owner.

    After `grace_s`, starts are taken back, and kernels end unless their owner could adopt them. After `orphan_after_s`,
    the others are culled too.
    """

    def __init__(
        self,
        watch: OwnerWatch,
        table: KernelTable,
        ender: KernelEnder,
        timers: Timers,
        *,
        grace_s: float,
        orphan_after_s: float,
    ) -> None:
        self._watch = watch
        self._table = table
        self._ender = ender
        self._timers = timers
        self._grace_s = grace_s
        self._orphan_after_s = orphan_after_s
        self._tasks: set[asyncio.Task[Any]] = set()
        watch.on_death = self._on_death
        table.on_exit.append(self._on_exit)
        table.on_drop.append(self._on_drop)

    async def close(self) -> None:
        self._watch.close()
        await cancel_all(self._tasks)

    def _on_death(self, key: OwnerKey) -> None:
        if not self._kernels_of(key):
            self._watch.forget(key)
            return
        self._timers.later(self._grace_s, lambda: spawn(self._end_starts(key), self._tasks, log))
        self._timers.later(self._orphan_after_s, lambda: spawn(self._cull(key), self._tasks, log))

    def _on_exit(self, record: KernelRecord) -> None:
        if not self._watch.is_alive(record.owner):
            self._ender.stop_soon(record, "ended, and so had its owner")

    def _on_drop(self, record: KernelRecord) -> None:
        key = owner_key(record.owner)
        if not self._watch.is_alive(record.owner) and not self._kernels_of(key):
            self._watch.forget(key)

    async def _end_starts(self, key: OwnerKey) -> None:
        """End what nobody can take over. Starts come first, or they would get the room that the others free."""
        for record in sorted(self._kernels_of(key), key=lambda record: record.start is None):
            if record.start is not None or not record.owner.can_adopt:
                reason = f"its owner {record.owner.application or record.owner.user} has ended"
                await self._ender.stop_quietly(record, reason)

    async def _cull(self, key: OwnerKey) -> None:
        for record in self._kernels_of(key):
            reason = f"culled: nobody has come back for it for {self._orphan_after_s:g} s"
            self._table.publish("cull", record, reason)
            await self._ender.stop_quietly(record, reason)

    def _kernels_of(self, key: OwnerKey) -> list[KernelRecord]:
        return [record for record in self._table.records.values() if owner_key(record.owner) == key]
