"""Keeps room on the file system of an agent's folder: kernels' logs may grow, but the ledger must be able to write.

It cuts logs that grow too long, soon after they are written. It also holds a reserve file, and deletes that file when
the ledger needs the room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from roost.launchers.daemon.file_input import clear_place
from roost.launchers.daemon.inotify import MODIFY, ONESHOT, Inotify
from roost.launchers.daemon.private_files import shorten
from roost.launchers.daemon.tasks import Timers

log = logging.getLogger(__name__)

T = TypeVar("T")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_LOOK_S = 0.5
_LOOK_AGAIN_S = 0.02
"""How long to wait between two readings of the free space while logs are written; otherwise `_LOOK_S`."""
_LOOK_AT_ALL_S = 15.0
_NOTABLE_BYTES = 4 << 20
"""How much the free space may shrink before all logs are checked, even if 15 s have not passed.

All logs are also checked if less than this is free.
"""
_SMALL_BYTES = 4 << 30
"""A kernel may fill half of a smaller file system within `_LOOK_S`, so writes there are reported at once.

A user may have 128 queues of such reports, and other programs need them too.
"""
_MOST_BYTES = 8 << 20
_LEAST_BYTES = 64 << 10
_SHARE = 4
"""All logs together may take the size of the file system divided by this. A single log may have 8 MiB."""
_KEPT = 8
"""A log that is cut keeps its end: the length that it may have, divided by this."""
_RESERVE_BYTES = 256 << 10
_TRIES = 5


class DiskRoom:
    """A watch that cuts the logs of `list_logs` when they grow too long. It runs from `watch` until there are no logs.

    Processes that write these logs must open them with O_APPEND.
    """

    def __init__(self, folder: Path, list_logs: Callable[[], Sequence[Path]]) -> None:
        self._folder = folder
        self._list_logs = list_logs
        self._reserve = folder / "reserve"
        self._timers = Timers()
        self._looked_at = 0.0
        self._free_bytes = 0
        self._writes: Inotify | None = None
        self._watched: dict[int, Path] = {}
        """The logs whose next write is reported, by watch."""
        self._written: set[Path] = set()
        self._read_at = 0.0
        self._hold_reserve()

    def watch(self, soon_s: float = _LOOK_S) -> None:
        """Watch the logs. May be repeated, for a new log."""
        if "logs" not in self._timers:
            self._timers.later(soon_s, self._look, key="logs")
        if self._writes is None and self._read_space()[1] < _SMALL_BYTES:
            self._writes = Inotify()
            if self._writes.fd >= 0:
                asyncio.get_running_loop().add_reader(self._writes.fd, self._note_writes)
        if self._writes is not None:
            self._await_writes(self._writes, self._list_logs())

    def close(self) -> None:
        self._timers.close()
        if self._writes is not None:
            if self._writes.fd >= 0:
                asyncio.get_running_loop().remove_reader(self._writes.fd)
            self._writes.close()

    def _await_writes(self, writes: Inotify, logs: Iterable[Path]) -> None:
        for path in set(logs).difference(self._watched.values()):
            watch = writes.add(path, MODIFY | ONESHOT)
            if watch >= 0:
                self._watched[watch] = path

    def _note_writes(self) -> None:
        """Look soon at the free space: without a report, a kernel could write for half a second."""
        assert self._writes is not None
        self._written.update(
            self._watched.pop(watch) for watch, _ in self._writes.read() if watch in self._watched
        )
        if self._written and "written" not in self._timers:
            soon_s = max(0.0, self._read_at + _LOOK_AGAIN_S - time.monotonic())
            self._timers.later(soon_s, self._look_at_writes, key="written")

    def _look_at_writes(self) -> None:
        assert self._writes is not None
        written, self._written = self._written, set()
        self._look()
        self._await_writes(self._writes, written)

    def write(self, write: Callable[[], T]) -> T:
        """Call `write`, which writes a small file. Make room and call it again if the file system is full."""
        for _ in range(_TRIES):  # a kernel that prints may take the room first
            try:
                return write()
            except OSError as problem:
                if problem.errno not in NO_ROOM:
                    raise
            self._make_room()
        return write()

    def _look(self) -> None:
        """Cut the logs that are too long, if the free space has shrunk or 15 s have passed."""
        free_bytes, size_bytes = self._read_space()
        now, was_cut = time.monotonic(), False
        has_shrunk = free_bytes < max(_NOTABLE_BYTES, self._free_bytes - _NOTABLE_BYTES)
        if has_shrunk or now > self._looked_at + _LOOK_AT_ALL_S:
            logs = self._list_logs()
            if not logs:
                return
            was_cut = self._cut(logs, size_bytes // _SHARE // len(logs))
            self._hold_reserve()
            self._looked_at, (free_bytes, _) = now, self._read_space()
            self._free_bytes = free_bytes
        self._free_bytes = max(self._free_bytes, free_bytes)
        self.watch(_LOOK_AGAIN_S if was_cut else _LOOK_S)

    def _read_space(self) -> tuple[int, int]:
        """Return the free bytes of the file system and its size; zeros while the folder is deleted."""
        self._read_at = time.monotonic()
        try:
            status = os.statvfs(self._folder)
        except OSError:
            return 0, 0
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def _make_room(self) -> None:
        log.warning("%s is full: its logs are cut, and the reserve is given up", self._folder)
        self._cut(self._list_logs(), _LEAST_BYTES)
        self._reserve.unlink(missing_ok=True)
        self.watch()

    def _cut(self, logs: Sequence[Path], most_bytes: int) -> bool:
        """Cut the logs that are longer than `most_bytes`, taken as 64 KiB at least and 8 MiB at most.

        Return True if a log was cut.
        """
        was_cut = False
        most_bytes = min(max(most_bytes, _LEAST_BYTES), _MOST_BYTES)
        for path in logs:
            try:
                was_cut |= shorten(path, over_bytes=most_bytes, keep_bytes=most_bytes // _KEPT)
            except OSError as problem:
                log.warning("%s cannot be cut: %s", path, problem)
        return was_cut

    def _hold_reserve(self) -> None:
        """Make the reserve file, which `write` deletes when it needs room.

        If the disk is full, do nothing.
        """
        clear_place(self._reserve, log)
        if self._reserve.exists():
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            descriptor = os.open(self._reserve, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
            except OSError:
                self._reserve.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
