"""How the users of a host see Python and this checkout, where these lie in folders that a host hides or closes.

A host has a /tmp, /run, /home and /dev/shm of its own. Users cannot enter a folder such as /root. The host therefore
has an empty folder over each of these, and the needed folders are mounted in it again. No real mode changes.
"""

from __future__ import annotations

import shlex
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[4]
OWN = ("/dev/shm", "/home", "/run", "/tmp", "/var/log")
"""Each host has folders of its own at these paths."""
_KEPT = "/dev/shm/kept"


def needed_paths() -> list[Path]:
    """Return the folders of this Python, of its virtual environment and of this checkout. No one is in another."""
    paths = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), CHECKOUT}
    return sorted(path for path in paths if not paths.intersection(path.parents))


def closed_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the topmost folder above each path that other users cannot enter."""
    found = set()
    for path in paths:
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & stat.S_IXOTH:
                found.add(parent)
                break
    return sorted(found)


def hide_script(paths: Sequence[Path], mounts: str) -> str:
    """Return the shell commands that close these folders, run `mounts`, and show the paths again.

    /dev/shm is in use meanwhile. `mounts` mounts all of OWN but /dev/shm.
    """
    closed = closed_folders(paths)
    hidden = [path for path in paths if any(str(p) in OWN or p in closed for p in path.parents)]
    keeps, shows = [], []
    for number, path in enumerate(hidden):
        kept, place = f"{_KEPT}/{number}", shlex.quote(str(path))
        keeps += [f"mkdir -p {kept}", f"mount --bind {place} {kept}"]
        shows += [f"mkdir -p {place}", f"mount --bind {kept} {place}", f"umount {kept}", f"rmdir {kept}"]
    covers = [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(folder))}" for folder in closed]
    lines = ["mount -t tmpfs -o mode=1777 tmpfs /dev/shm", *keeps, *covers, mounts, *shows]
    return "\n".join([*lines, f"rmdir {_KEPT}"] if hidden else lines)
