"""A watch on folders (inotify): it tells whether anything in them may have changed, without a look at each file.

It notices writes, renames, removals and new attributes. It does not notice writes through a mapping of a file's memory
(mmap), although they change the file's time.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from roost.launchers.daemon import inotify

_CHANGES = (
    inotify.MODIFY
    | inotify.ATTRIB
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.CREATE
    | inotify.DELETE
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
)
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""A space, tab, newline or backslash in the path of a mount point, see proc(5)."""
_LOCAL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
"""The file systems on which every change is made by this machine's kernel, which reports it."""
_MOST = 20_000
_SHARE = 4
"""At most `_MOST` folders and files are watched, and a quarter of what the system allows: editors need watches too."""
_ALLOWED = Path("/proc/sys/fs/inotify/max_user_watches")


class FolderWatch:
    """The folders that an agent watches, and some files. Several zygotes may watch the same folder.

    `changes` counts upwards whenever something may have changed in any of them; `read` brings it up to date.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._used: Counter[int] = Counter()  # how many zygotes use each watch
        self._events: inotify.Inotify | None = None
        self._most = 0

    def add(self, paths: Iterable[str]) -> list[int] | None:
        """Watch these folders and files. Return the watches for `remove`, or None if one cannot be watched."""
        added: list[int] = []
        if self._events is None or self._events.fd < 0:  # not earlier: a user may have 128 of these
            self._events = inotify.Inotify()
            self._most = min(_MOST, _read_allowed() // _SHARE)
        for path in paths:
            watch = -1
            if len(self._used) < self._most:
                watch = self._events.add(path, _CHANGES)
            if watch < 0:
                self.remove(added)
                return None
            self._used[watch] += 1
            added.append(watch)
        return added

    def remove(self, watches: Iterable[int]) -> None:
        for watch in watches:
            self._used[watch] -= 1
            if self._used[watch] <= 0:
                del self._used[watch]
                if self._events is not None:
                    self._events.remove(watch)

    def read(self) -> int:
        """Read the events since the last call, and return `changes`."""
        if self._events is not None:
            # The answer to `remove` is no change.
            self.changes += sum(bool(mask & ~inotify.IGNORED) for _, mask in self._events.read())
        return self.changes

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _read_allowed() -> int:
    try:
        return int(_ALLOWED.read_text())
    except (OSError, ValueError):
        return 0


def find_local(folders: Iterable[str], mounts: Path = Path("/proc/self/mountinfo")) -> set[str]:
    """Return those of these folders that are on a local file system."""
    try:
        lines = os.fsdecode(mounts.read_bytes()).splitlines()
    except OSError:
        return set()
    kinds: dict[str, str] = {}
    for (
        line
    ) in lines:  # proc(5): the fifth field is the mount point, and the first after " - " the file system
        before, _, after = line.partition(" - ")
        kinds[_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), before.split()[4])] = after.split()[0]
    found = set()
    for folder in folders:
        real = Path(os.path.realpath(folder))
        point = next((str(each) for each in (real, *real.parents) if str(each) in kinds), "")
        if kinds.get(point) in _LOCAL:
            found.add(folder)
    return found
