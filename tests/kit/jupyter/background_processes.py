"""Cells that start a process which outlives its kernel, and the end of that process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

_SLEEP = "exec -a {name} sleep 120 >/dev/null 2>&1 </dev/null"
STARTS = {
    "system": "import os; os.system({shell!r} + ' &')",
    "spawn": "import os; os.spawnlp(os.P_NOWAIT, 'setsid', 'setsid', 'bash', '-c', {command!r})",
    "popen": (
        "import subprocess; subprocess.Popen(['bash', '-c', {command!r}], close_fds=False, start_new_session=True)"
    ),
}
"""How people start a background process in a cell, with `{shell}` or `{command}` for the process."""
KEEP_PORTS = """
import os, socket
for _number in map(int, os.listdir("/proc/self/fd")):
    try:
        with socket.socket(fileno=os.dup(_number)) as _socket:
            if _socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                os.set_inheritable(_number, True)
    except OSError:
        pass
"""
"""Code after which a process that the kernel starts keeps the kernel's ports open."""


def start_code(how: str, name: str) -> str:
    """Return a cell that starts a process in the background. The system shows it as `name`."""
    command = _SLEEP.format(name=name)
    return STARTS[how].format(command=command, shell=f"setsid bash -c '{command}'")


def find_named(name: str) -> list[int]:
    """Return the pids of the processes of this name, on this machine and in its containers."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes().split(b"\0")[0] == name.encode():
                    found.append(int(folder.name))
    return found


@contextlib.contextmanager
def ending(name: str) -> Iterator[None]:
    """End all processes of this name after the block."""
    try:
        yield
    finally:
        for pid in find_named(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
