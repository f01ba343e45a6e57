"""Keeps room on the file system of an agent's folder: it cuts the logs of kernels that grow too long.

A kernel may still fill the file system within moments. A start that finds it full fails with a sentence that says so.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from roost.launchers.daemon.private_files import shorten
from roost.launchers.daemon.tasks import Timers

log = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CUT_AGAIN_S = 2.0
_MOST_BYTES = 8 << 20
_LEAST_BYTES = 64 << 10
_SHARE = 4
"""All logs together may take the size of the file system divided by this. A single log may have 8 MiB."""
_KEPT = 8
"""A log that is cut keeps its end: the length that it may have, divided by this."""


class DiskRoom:
    """A watch that cuts the logs of `list_logs` when they grow too long. It runs from `watch` until there are no logs.

    Processes that write these logs must open them with O_APPEND.
    """

    def __init__(self, folder: Path, list_logs: Callable[[], Sequence[Path]]) -> None:
        self._folder = folder
        self._list_logs = list_logs
        self._timers = Timers()

    def watch(self) -> None:
        """Cut the logs every two seconds. May be repeated, for a new log."""
        if "logs" not in self._timers:
            self._timers.later(_CUT_AGAIN_S, self._cut_and_watch, key="logs")

    def close(self) -> None:
        self._timers.close()

    def cut(self) -> None:
        """Cut the logs that are too long."""
        logs = self._list_logs()
        if not logs:
            return
        most_bytes = min(max(self._read_size() // _SHARE // len(logs), _LEAST_BYTES), _MOST_BYTES)
        for path in logs:
            try:
                shorten(path, over_bytes=most_bytes, keep_bytes=most_bytes // _KEPT)
            except OSError as problem:
                log.warning("%s cannot be cut: %s", path, problem)

    def _cut_and_watch(self) -> None:
        self.cut()
        if self._list_logs():
            self.watch()

    def _read_size(self) -> int:
        """Return the bytes of the file system, or 0 if the folder was deleted."""
        try:
            status = os.statvfs(self._folder)
        except OSError:
            return 0
        return status.f_blocks * status.f_frsize
