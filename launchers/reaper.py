"""The exit status of every child of the agent, and of every orphan that falls to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import OrderedDict
from collections.abc import Callable

_REMEMBERED = 1024


class Reaper:
    """Reaps at SIGCHLD. A child may end before anybody asks for it: its status is kept for a while.

    `before_reap` is called with the pid of each ended child while the pid cannot be used again; `others` with
    pid and status of those that nobody waits for.
    """

    def __init__(self, *, before_reap: Callable[[int], None], others: Callable[[int, int], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._before_reap = before_reap
        self._others = others
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._ended: OrderedDict[int, int] = OrderedDict()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def exit_code(self, pid: int) -> asyncio.Future[int]:
        """A future of the child's exit code as `subprocess` gives it. Ask once per pid."""
        future: asyncio.Future[int] = self._loop.create_future()
        if pid in self._ended:
            future.set_result(self._ended.pop(pid))
        else:
            self._waiting[pid] = future
        return future

    def reap(self) -> None:
        """Collect all children that have ended."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            self._before_reap(ended.si_pid)
            try:
                pid, status = os.waitpid(ended.si_pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            future = self._waiting.pop(pid, None)
            if future is not None:
                if not future.done():
                    future.set_result(code)
                continue
            self._ended[pid] = code
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            self._others(pid, status)

    def close(self) -> None:
        """Stop reaping."""
        self._loop.remove_signal_handler(signal.SIGCHLD)
