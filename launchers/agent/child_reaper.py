"""The exit status of every child of the agent. The agent is also the parent of all orphans among its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable

_REMEMBERED = 1024
_REMEMBERED_S = 5.0  # a forked kernel may end before the agent reads its pid


class Reaper:
    """A collector of exit codes at SIGCHLD. `others` gets the pid and status of children that nobody waits for."""

    def __init__(self, *, others: Callable[[int, int], object], remembered_s: float = _REMEMBERED_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._others = others
        self._remembered_s = remembered_s
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._ended: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def exit_code(self, pid: int, *, is_ours: bool = False) -> asyncio.Future[int]:
        """Return a future of the child's exit code, in the form of `subprocess`. Call it once per child.

        `is_ours`: the caller has just spawned the child, so a remembered exit code belongs to an earlier process.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        code, ended_at = self._ended.pop(pid, (0, -self._remembered_s))
        if is_ours or time.monotonic() - ended_at > self._remembered_s:
            self._waiting[pid] = future
        else:
            sweep_group(pid)
            future.set_result(code)
        return future

    def reap(self) -> None:
        while True:
            try:
                pid, status = self._next()
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            future = self._waiting.pop(pid, None)
            if future is None:
                self._ended.pop(pid, None)
                self._ended[pid] = code, time.monotonic()
                if len(self._ended) > _REMEMBERED:
                    self._ended.popitem(last=False)
                self._others(pid, status)
            elif not future.done():
                future.set_result(code)

    def close(self) -> None:
        self._loop.remove_signal_handler(signal.SIGCHLD)

    def _next(self) -> tuple[int, int]:
        """Reap one child as `os.waitpid` does. Kill its group first, while nobody else can get its pid."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in self._waiting:
                sweep_group(pid)
            return pid, status
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return 0, 0
        if ended.si_pid in self._waiting:
            sweep_group(ended.si_pid)
        return os.waitpid(ended.si_pid, os.WNOHANG)


def sweep_group(pid: int) -> None:
    """Kill the rest of the process group that `pid` led. The number stays taken while the group has members."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
