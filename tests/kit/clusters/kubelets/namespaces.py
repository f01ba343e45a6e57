"""Linux namespaces: a process that holds a set of them, and other processes that run in them.

The calling process stays outside and is the parent of all. It sees, signals and reaps them by their pids. It must have
one thread only. All processes get SIGKILL when their parent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_MOUNT, _UTS, _IPC, _PID, _NET = 0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000
_KINDS = _MOUNT | _UTS | _IPC | _NET
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
# The first process of a pid namespace becomes the parent of its orphans. The kernel reaps them if SIGCHLD is ignored.
_HOLD = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print(flush=True); signal.pause()"


class Namespaces:
    """New mount, UTS, IPC, pid and network namespaces.

    They last until the process `pid`, which holds them, ends. All their processes end with it.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        with _new_children_in(lambda: _libc.unshare(_PID)):
            self._holder = subprocess.Popen(
                [sys.executable, "-ISc", _HOLD],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                preexec_fn=lambda: _prepare(lambda: _libc.unshare(_KINDS)),
            )
        assert self._holder.stdout is not None
        with self._holder.stdout as output:
            output.readline()
        self._descriptor = os.pidfd_open(self._holder.pid)

    @property
    def pid(self) -> int:
        return self._holder.pid

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process in the namespaces and append its output to the log."""
        with open(log, "ab") as file, _new_children_in(lambda: _libc.setns(self._descriptor, _PID)):
            return subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                preexec_fn=lambda: _prepare(lambda: _libc.setns(self._descriptor, _KINDS)),
                start_new_session=True,
            )

    def run(self, script: str, log: Path) -> None:
        """Run a shell script in the namespaces. Raise RuntimeError with the log's end if a command fails."""
        if self.start(["sh", "-exc", script], log).wait():
            raise RuntimeError(f"the setup of a namespace failed:\n{log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill the holder. Linux then kills all other processes in the namespaces. Their parent must reap them."""
        self._holder.kill()

    def close(self) -> None:
        """Reap the holder. All other processes must have been reaped before."""
        self._holder.wait()
        os.close(self._descriptor)


@contextmanager
def _new_children_in(change: Callable[[], int]) -> Iterator[None]:
    """Let new child processes begin in the pid namespace that `change` selects, until the block ends."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    _check(change())
    try:
        yield
    finally:
        _check(_libc.setns(own, _PID))
        os.close(own)


def _prepare(enter: Callable[[], int]) -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    _check(enter())


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
