"""Where the book of this machine is: a folder that root owns, and in which nobody can remove another user's files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

INSTALLED = Path("/run/roost")
"""The folder that root makes for the book, with `roost machine install`."""
_SHARED = (Path("/run/lock"), Path("/tmp"))
"""Without root's folder, the first of these that root owns and that is sticky."""
_VARIABLE = "ROOST_MACHINE_DIR"

Way = Literal["installed", "shared", "chosen", "nobody"]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for the book, and which way it was found.

    `installed`: root has made it. `shared`: a folder of the system for all users. `chosen`: by ROOST_MACHINE_DIR.
    `nobody`: there is no folder that all users share, so each agent stands alone.
    """

    folder: Path | None
    way: Way
    why: str = ""
    """Why no better way was found, as a clause: why nobody arbitrates, or why root's folder does not count."""


def find_place(
    *,
    installed: Path = INSTALLED,
    shared: Sequence[Path] = _SHARED,
    mounts: Path = Path("/proc/self/mountinfo"),
    root: int = 0,
) -> Place:
    """Return the place of this machine's book. ROOST_MACHINE_DIR counts only where root has made no folder.

    `root` is the uid that must own the folder.
    """
    if _is_safe(installed, root):
        return Place(installed, "installed")
    if chosen := os.environ.get(_VARIABLE):
        return Place(Path(chosen), "chosen")
    unfit = f"{installed} is no folder of root's with mode 1777" if os.path.lexists(installed) else ""
    problem = ""
    for folder in shared:
        if not _is_safe(folder, root):
            problem = problem or f"{folder} is no folder of root's with the sticky bit"
        elif is_private(folder, mounts):
            problem = f"{folder} is private to this user or service"
        else:
            return Place(folder, "shared", unfit)
    return Place(None, "nobody", problem)


def is_private(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """True if another folder is mounted in the place of this one, as `PrivateTmp` and `pam_namespace` do."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return False
    # proc_pid_mountinfo(5): id, parent, device, root (the folder of the file system that is mounted), mount point
    roots = [fields[3] for fields in map(str.split, lines) if len(fields) > 4 and fields[4] == str(folder)]
    return bool(roots) and roots[-1] != "/"


def _is_safe(folder: Path, root: int) -> bool:
    """True if root owns the folder, all users may write there, and none can remove another's file."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    is_shared = status.st_mode & stat.S_IWOTH and status.st_mode & stat.S_ISVTX
    return stat.S_ISDIR(status.st_mode) and status.st_uid == root and bool(is_shared)
