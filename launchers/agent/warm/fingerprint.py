"""The files on which a zygote depends: it imported its modules some time ago.

A zygote serves only while the files that its imports have read are unchanged (`Fingerprint.broken_by`), and for starts
in folders that offer none of its modules (`find_shadow`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, field

from roost.launchers.daemon.tasks import join_shared
from roost.placement.model.last_entries import LastEntries

FileStamp = tuple[int, int, int]
"""The stamp of a file: mtime in ns, size in bytes, inode."""

_MODULE_ENDINGS = (".py", ".pyc", ".so")
_SETTLED_NS = 1_000_000_000
_MOST_FOLDERS = 64
_candidates: LastEntries[tuple[str, frozenset[str]], tuple[FileStamp, tuple[str, ...]]] = LastEntries(
    _MOST_FOLDERS
)
"""The modules of the latest working folders that have such names, each list with the stamp of its folder."""


def stamp(path: str) -> FileStamp | None:
    """Return the stamp of a file or folder, or None if it does not exist. A new content has a new stamp."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: no path can have this name
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def find_shadow(folder: str, names: frozenset[str]) -> str:
    """Return a module in `folder` that a fresh kernel there would import instead of an imported one; empty if none.

    `names` are the modules that a fresh kernel would look for in its working folder. The file `matplotlibrc` counts as
    a module: matplotlib reads it when it is imported. This lists the folder, unless its
    stamp is still that of an earlier call.
    """
    looked_ns, changed = time.time_ns(), stamp(folder)
    known = _candidates.get((folder, names))
    if known is not None and known[0] == changed:
        found = known[1]
    else:
        found = _find_candidates(folder, names)
        # A folder that changed a moment ago may change again without another stamp.
        if changed is not None and looked_ns - changed[0] > _SETTLED_NS:
            _candidates[folder, names] = changed, found
    return next(filter(_is_module, found), "")


def _find_candidates(folder: str, names: frozenset[str]) -> tuple[str, ...]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return tuple(entry.path for entry in entries if entry.name.partition(".")[0] in names)
    return ()


def _is_module(path: str) -> bool:
    """True for a module, and for a folder with an `__init__` file. Another folder hides no installed package."""
    if path.endswith((*_MODULE_ENDINGS, "/matplotlibrc")):
        return True
    with contextlib.suppress(OSError):
        return any(name.startswith("__init__.") for name in os.listdir(path))
    return False


@dataclass(slots=True, kw_only=True)
class Fingerprint:
    """The files and folders from which a zygote imported its modules."""

    files: dict[str, FileStamp | None]
    folders: dict[str, FileStamp | None] = field(default_factory=dict)
    """The entries of sys.path that are not site-packages. People write files into them all the time.

    So a change counts only if it adds or removes a module with a name that the zygote imported.
    """
    absent: tuple[str, ...] = ()
    """Folders that an interpreter would search if they existed, such as that of the user's own packages."""
    imported_names: frozenset[str] = frozenset()
    """The names of the modules that the zygote imported."""
    _listed: dict[str, frozenset[str]] = field(default_factory=dict)
    _check: asyncio.Task[str | None] | None = None

    def __post_init__(self) -> None:
        self._listed = {folder: self._offered(folder) for folder in self.folders}

    async def check(self) -> str | None:
        """Return the result of `broken_by`. Launches in a burst share a check; later callers wait for the next one."""

        async def run() -> str | None:
            await asyncio.sleep(0)  # let the other launches of the burst join
            self._check = None  # from here on, callers need the next check
            return self.broken_by()

        if self._check is None:
            self._check = asyncio.create_task(run())
        return await join_shared(self._check)

    def broken_by(self) -> str | None:
        """Return the first path that has changed, or None. This costs a stat for each of about 1,000 files."""
        look = os.stat
        try:
            for path, known in self.files.items():
                status = look(path)
                if (status.st_mtime_ns, status.st_size, status.st_ino) != known:
                    return path
        except OSError:
            if known is not None:
                return path
        for path in self.absent:
            if os.path.exists(path):
                return path
        for folder, known in self.folders.items():
            now = stamp(folder)
            if now != known:
                if self._offered(folder) != self._listed[folder]:
                    return folder
                self.folders[folder] = now
        return None

    def _offered(self, folder: str) -> frozenset[str]:
        try:
            return self.imported_names.intersection(name.partition(".")[0] for name in os.listdir(folder))
        except OSError:
            return frozenset()
