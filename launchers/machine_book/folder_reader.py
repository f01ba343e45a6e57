"""Reads the promises in one folder of the book. Each file is input from a stranger, and is read again after changes."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile

from .promise import NAME, Promise, read_promise

log = logging.getLogger(__name__)

MOST_OF_USER = 4096
"""At most this many promises of one user count, the oldest first."""
_SETTLED_NS = 50_000_000
"""A folder that has not changed for so long shows each later change by another time."""


@dataclass(frozen=True, slots=True)
class Held:
    """A promise in the book, with its user and its file."""

    uid: int
    path: Path
    promise: Promise


@dataclass(frozen=True, slots=True)
class Stranger:
    """A file or promise that does not count, and why, as a predicate."""

    path: Path
    uid: int
    reason: str


class FolderReader:
    """Reads the promises of one folder. A file is read again only after it has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed_ns = -1
        """When the folder had changed last, at the last reading; -1 if a later change may have the same time."""
        self._files: dict[str, tuple[object, Held | Stranger]] = {}

    def read(self) -> tuple[list[Held], list[Stranger]]:
        """Return the promises of the folder, dead ones included, and the files that are none. Never raises."""
        try:
            changed_ns = self._folder.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                now_ns = time.time_ns()
                self._files = self._list()
                self._changed_ns = changed_ns if now_ns - changed_ns > _SETTLED_NS else -1
        except OSError as problem:
            log.debug("%s cannot be read: %s", self._folder, problem)
            self._files, self._changed_ns = {}, -1
        entries = [entry for _, entry in self._files.values()]
        return (
            [each for each in entries if isinstance(each, Held)],
            [each for each in entries if isinstance(each, Stranger)],
        )

    def _list(self) -> dict[str, tuple[object, Held | Stranger]]:
        by_user: dict[int, list[tuple[int, str, os.stat_result]]] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith("roost-") and NAME.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        by_user.setdefault(status.st_uid, []).append((status.st_ctime_ns, entry.name, status))
        files: dict[str, tuple[object, Held | Stranger]] = {}
        for of_user in by_user.values():
            for _, name, status in sorted(of_user)[:MOST_OF_USER]:
                known = self._files.get(name)
                if known is not None and known[0] == _state_of(status):
                    files[name] = known
                else:
                    with contextlib.suppress(FileNotFoundError):
                        files[name] = _state_of(status), _read(self._folder / name, status.st_uid)
        return files

    def note_written(self, promise: Promise) -> None:
        """Note the content of a file that this process has just written, so that it need not be read."""
        path = self._folder / promise.name
        with contextlib.suppress(OSError):  # it is gone already
            status = path.lstat()
            self._files[promise.name] = _state_of(status), Held(status.st_uid, path, promise)

    def read_newer(self, held: Held) -> Held | Stranger | None:
        """Return `held` itself if its file has not changed since it was read; else the file as it is now, or None."""
        name = held.path.name
        try:
            state = _state_of(held.path.lstat())
            if self._files.get(name, (None,))[0] == state:
                return held
            newer = _read(held.path, held.uid)
        except FileNotFoundError:
            self._files.pop(name, None)
            return None
        self._files[name] = state, newer
        return newer


def _state_of(status: os.stat_result) -> object:
    """Return what changes with each write of a file."""
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _read(path: Path, uid: int) -> Held | Stranger:
    try:
        owner, promise = read_promise(path)
    except UnfitFile as problem:
        return Stranger(path, uid, problem.reason)
    return Held(owner, path, promise)
