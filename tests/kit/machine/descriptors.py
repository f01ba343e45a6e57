"""The descriptors of a process, read from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def list_descriptors(pid: int) -> dict[int, str]:
    """Return what each descriptor of the process names, for example `socket:[1234]`."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found[int(entry.name)] = os.readlink(entry)
    return found


def list_inheritable(pid: int) -> dict[int, str]:
    """Return the descriptors that a program which the process executes would get."""
    found = {}
    for number, target in list_descriptors(pid).items():
        with contextlib.suppress(FileNotFoundError):
            lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
            flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
            if not flags & os.O_CLOEXEC:
                found[number] = target
    return found


def private_files(pid: int) -> set[str]:
    """Return the sockets and pipes of a process beyond its standard streams. A fork may let two processes share one."""
    files = list_descriptors(pid)
    return {name for number, name in files.items() if number > 2 and name.startswith(("socket:", "pipe:"))}
