"""Collects the exit codes of the agent's children. Descendants that lose their parents become its children too."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from roost.launchers.agent.machine.sessions import OwnSession, Session

_REMEMBERED = 1024
_REMEMBERED_S = 5.0  # a forked kernel may end before the agent reads its pid


_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Spent(NamedTuple):
    """The CPU time of a process and its ended children, and the highest peak of memory among them."""

    cpu_s: float = 0.0
    peak_bytes: int = 0


class Reaper:
    """A collector of exit codes at SIGCHLD. `others` gets the pid and status of children that nobody waits for.

    If `exit_code` was called for a child, the remaining processes of its session are killed when the child ends.
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
        self._spent: OrderedDict[int, Spent] = OrderedDict()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def exit_code(self, pid: int, *, is_ours: bool = False) -> asyncio.Future[int]:
        """Return a future of the child's exit code, in the form of `subprocess`. Call it once per child.

        `is_ours`: the caller has just spawned the child. A remembered exit code then belongs to an earlier process with
        this pid.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        code, ended_at = self._ended.pop(pid, (0, -self._remembered_s))
        if is_ours or time.monotonic() - ended_at > self._remembered_s:
            self._waiting[pid] = future
        else:
            self._session.sweep(pid)
            future.set_result(code)
        return future

    def spent(self, pid: int) -> Spent:
        """Return the CPU time and memory peak of a child that has ended lately; zeros if they are not known."""
        return self._spent.get(pid, Spent())

    def reap(self) -> None:
        while True:
            try:
                pid, status, used = self._next()
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._spent.pop(pid, None)
            self._spent[pid] = Spent(used.ru_utime + used.ru_stime, used.ru_maxrss * _MAXRSS_UNIT)
            if len(self._spent) > _REMEMBERED:
                self._spent.popitem(last=False)
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

    def _next(self) -> tuple[int, int, Any]:
        """Reap one child and return the result of `os.wait4`; the pid is 0 if no child has ended.

        Before that, kill the remaining processes of its session, while no new process can get its pid.
        """
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid in self._waiting:
                self._session.sweep(pid)
            return pid, status, used
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return 0, 0, None
        if ended.si_pid in self._waiting:
            self._session.sweep(ended.si_pid)
        return os.wait4(ended.si_pid, os.WNOHANG)
