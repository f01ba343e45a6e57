"""Linux's inotify: events about files and folders."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator

# From linux/inotify.h
MODIFY, ATTRIB, MOVED_FROM, MOVED_TO = 0x2, 0x4, 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
IGNORED = 0x8000
"""The event that says that a watch has ended."""
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 65_536


class Inotify:
    """A queue of events. Without Linux, and where this user has too many of them, it watches nothing."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = -1
        """The descriptor, which is readable when there are events; -1 if nothing is watched."""
        if sys.platform == "linux":
            self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def add(self, path: str | os.PathLike[str], mask: int) -> int:
        """Watch a file or folder for the events in `mask`. Return the watch, or -1 if it cannot be watched."""
        if self.fd < 0:
            return -1
        watch: int = self._libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        return watch

    def remove(self, watch: int) -> None:
        if self.fd >= 0:
            self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> Iterator[tuple[int, int]]:
        """Yield the events since the last call: the watch and the mask of each."""
        while self.fd >= 0:
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                yield watch, mask

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
