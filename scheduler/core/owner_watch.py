"""Owners: whether the applications that hold kernels still live, and the rules for the kernels after an owner's end.

Clients connect through a Unix socket, so they are processes of this machine. An owner without a pid, or in another PID
namespace, counts as alive, because this process cannot see it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from roost.launchers.daemon.process import Watch, is_running
from roost.launchers.daemon.tasks import Timers
from roost.launchers.daemon.world import read_namespace
from roost.launchers.protocol.messages import Owner
from roost.scheduler.config.settings import Settings

from .ender import KernelEnder
from .kernel_record import KernelRecord
from .kernel_table import KernelTable

log = logging.getLogger(__name__)

_SHORT_S = 300.0
"""How long an owner must hold an adopted kernel, so that the owner's end changes `KernelRecord.unheld_since`."""

OwnerKey = tuple[str, int, float]
"""Host, pid and start time: they tell one application process from all others."""


class OwnerWatch:
    """Ends the starts and kernels of an ended owner after `owner_grace_s`.

    If the owner can adopt them after its restart, starts keep their places for `place_grace_s`, and kernels live on for
    `orphan_after_s`.
    """

    def __init__(self, table: KernelTable, ender: KernelEnder, timers: Timers, settings: Settings) -> None:
        self._table = table
        self._ender = ender
        self._timers = timers
        self._settings = settings
        self._watches: dict[OwnerKey, Watch] = {}
        self._ended: set[OwnerKey] = set()
        self._listeners: list[Callable[[], None]] = []
        table.listen("exited", self._on_exit)
        table.listen("dropped", self._on_drop)

    def listen(self, on_orphans: Callable[[], None]) -> None:
        """Call `on_orphans` each time that an owner with kernels or starts has ended. It must not raise."""
        self._listeners.append(on_orphans)

    def watch(self, owner: Owner) -> None:
        """Watch this owner from now on. May be repeated."""
        key = owner_key(owner)
        if key in self._watches or not _is_visible(owner):
            return

        was_seen = is_running(owner.pid, owner.process_started_at)

        def ended() -> None:
            log.info("owner=%s pid=%d has ended", owner.application or owner.user, owner.pid)
            self._on_death(key, was_seen=was_seen)

        self._watches[key] = Watch(owner.pid, owner.process_started_at, ended)

    def is_alive(self, owner: Owner) -> bool:
        """True unless the owner's process is known to have ended."""
        return owner_key(owner) not in self._ended

    def holds(self, owner: Owner) -> bool:
        """True unless the owner's process has ended. Looks at the process now, unlike `is_alive`."""
        if not self.is_alive(owner):
            return False
        return not _is_visible(owner) or is_running(owner.pid, owner.process_started_at)

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()

    def _on_death(self, key: OwnerKey, *, was_seen: bool) -> None:
        self._ended.add(key)
        if self._forget_without_kernels(key):
            return
        settings = self._settings
        now = time.monotonic()
        for record in self._kernels_of(key):
            was_short = record.adopted_at is not None and now - record.adopted_at < _SHORT_S
            if record.unheld_since is None or not was_short:
                record.unheld_since = now if was_seen else -math.inf
        self._timers.later(settings.owner_grace_s, lambda: self._end_without_heir(key))
        self._timers.later(settings.place_grace_s, lambda: self._end_starts(key))
        self._timers.later(settings.orphan_after_s, lambda: self._cull(key))
        for on_orphans in self._listeners:
            on_orphans()

    def _on_exit(self, record: KernelRecord) -> None:
        if not self.is_alive(record.owner):
            self._ender.stop_soon(record, "ended, and so had its owner")

    def _on_drop(self, record: KernelRecord) -> None:
        if not self.is_alive(record.owner):
            self._forget_without_kernels(owner_key(record.owner))

    def _forget_without_kernels(self, key: OwnerKey) -> bool:
        """Forget an ended owner that has no kernels left. Return True if it has none."""
        if self._kernels_of(key):
            return False
        self._ended.discard(key)
        self._watches.pop(key).close()
        return True

    def _end_without_heir(self, key: OwnerKey) -> None:
        """End the kernels and starts of an ended owner that cannot adopt them.

        Starts are ended first, or they would get the room that the ended kernels free.
        """
        for record in sorted(self._kernels_of(key), key=lambda record: record.start is None):
            if not record.owner.can_adopt:
                self._ender.stop_soon(record, _describe_end(record))

    def _end_starts(self, key: OwnerKey) -> None:
        for record in self._kernels_of(key):
            if record.start is not None:
                self._ender.stop_soon(record, _describe_end(record))

    def _cull(self, key: OwnerKey) -> None:
        for record in self._kernels_of(key):
            reason = f"culled: nobody has come back for it for {self._settings.orphan_after_s:g} s"
            self._table.publish("cull", record, reason)
            self._ender.stop_soon(record, reason)

    def _kernels_of(self, key: OwnerKey) -> list[KernelRecord]:
        return [record for record in self._table.records.values() if owner_key(record.owner) == key]


def _describe_end(record: KernelRecord) -> str:
    return f"its owner {record.owner.application or record.owner.user} has ended"


def _is_visible(owner: Owner) -> bool:
    return owner.pid > 0 and owner.pid_namespace in ("", read_namespace("pid"))


def owner_key(owner: Owner) -> OwnerKey:
    return owner.host, owner.pid, owner.process_started_at
