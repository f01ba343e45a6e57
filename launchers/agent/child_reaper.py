"""The exit status of every child of the agent, and of every orphan that falls to it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable

_REMEMBERED = 1024
_REMEMBERED_S = 5.0
"""A forked kernel may end before its pid is read, a moment earlier; pids are used again, later."""


class Reaper:
    """Reaps at SIGCHLD; `others` is called with pid and status of those that nobody waits for.

    What a child that is waited for leaves in its process group ends with it.
    """

    def __init__(self, *, others: Callable[[int, int], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._others = others
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._ended: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def exit_code(self, pid: int, *, is_ours: bool = False) -> asyncio.Future[int]:
        """A future of the child's exit code as `subprocess` gives it. Ask once per child.

        `is_ours`: the caller spawned it in this step of the loop, so that what is known of the pid is of another.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        code, ended_at = self._ended.pop(pid, (0, -_REMEMBERED_S))
        if is_ours or time.monotonic() - ended_at > _REMEMBERED_S:
            self._waiting[pid] = future
        else:
            sweep_group(pid)
            future.set_result(code)
        return future

    def reap(self) -> None:
        """Collect all children that have ended."""
        while True:
            try:
                pid, status = self._next()
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            future = self._waiting.pop(pid, None)
            if future is not None:
                if not future.done():
                    future.set_result(code)
                continue
            self._ended.pop(pid, None)
            self._ended[pid] = code, time.monotonic()
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            self._others(pid, status)

    def close(self) -> None:
        """Stop reaping."""
        self._loop.remove_signal_handler(signal.SIGCHLD)

    def _next(self) -> tuple[int, int]:
        """Reap one child as `os.waitpid` does; its group goes first, while its pid cannot be used again."""
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
    """Kill what is left of the process group that `pid` led; its number is not used again while it has members."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
