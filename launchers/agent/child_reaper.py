"""The exit status of every child of the agent. The agent is also the parent of all orphans among its descendants."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable

from .sessions import OwnSession, Session

_REMEMBERED = 1024
_REMEMBERED_S = 5.0  # a forked kernel may end before the agent reads its pid


class Reaper:
    """A collector of exit codes at SIGCHLD. `others` gets the pid and status of children that nobody waits for.

    It sweeps the session of a child that ends.
    """

    def __init__(
        self,
        *,
        others: Callable[[int, int], object],
        session: Session | None = None,
        remembered_s: float = _REMEMBERED_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._others = others
        self._session = session or OwnSession()
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
            self._session.sweep(pid)
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
        """Reap one child as `os.waitpid` does. Before that, kill its processes: nobody else can get its pid yet."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in self._waiting:
                self._session.sweep(pid)
            return pid, status
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return 0, 0
        if ended.si_pid in self._waiting:
            self._session.sweep(ended.si_pid)
        return os.waitpid(ended.si_pid, os.WNOHANG)
