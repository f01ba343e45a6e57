"""Cells that start a process which outlives its kernel, and the end of that process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

_DAEMON = "import os, time; os.getpid() == os.getsid(0) or os.setsid(); time.sleep(120)"
STARTS = {
    "system": (
        "import os, shlex, sys;"
        " os.system(shlex.join([sys.executable, '-S', '-c', {code!r}, {name!r}]) + ' >/dev/null 2>&1 </dev/null &')"
    ),
    "spawn": (
        "import os, sys; os.spawnlp(os.P_NOWAIT, sys.executable, sys.executable, '-S', '-c', {code!r}, {name!r})"
    ),
    "popen": (
        "import subprocess, sys; command = [sys.executable, '-S', '-c', {code!r}, {name!r}];"
        " _ = subprocess.Popen(command, close_fds=False, start_new_session=True)"
    ),
}
"""How people start a process in the background in a cell. It sleeps for two minutes. `{name}` is its last argument."""
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
    """Return a cell that starts a process in the background, with `name` as its last argument."""
    return STARTS[how].format(code=_DAEMON, name=name)


def find_named(name: str) -> list[int]:
    """Return the pids of the processes whose last argument begins so, on this machine and in its containers."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):  # it has ended, or is a thread of the system
                if (folder / "cmdline").read_bytes().split(b"\0")[-2:-1][0].startswith(name.encode()):
                    found.append(int(folder.name))
    return found


@contextlib.contextmanager
def ending(name: str) -> Iterator[None]:
    """End all processes whose name begins so after the block."""
    try:
        yield
    finally:
        for pid in find_named(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
