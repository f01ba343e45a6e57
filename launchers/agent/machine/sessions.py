"""The processes of a kernel: those of a session of its own, or the descendants of an agent that shares its session."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

import psutil

from roost.launchers.daemon.process import signal_group

log = logging.getLogger(__name__)

_SWEEPS = 20  # a process may fork while the others are killed


class Session(Protocol):
    """The session in which kernels run. `is_shared`: it is the session and process group of the agent."""

    is_shared: bool

    def signal(self, pid: int, signum: int) -> bool:
        """Signal a kernel and the processes in its group. Return False if there is no such process."""

    def sweep(self, pid: int) -> None:
        """Kill the remaining processes of an ended kernel, before a new process can get the kernel's pid."""

    def find_members(self, kernels: Collection[int]) -> Iterator[tuple[int, int]]:
        """Yield each process of the running kernels, with the pid of its kernel."""


class OwnSession:
    """A session and a process group for each kernel, which leads both."""

    is_shared = False

    def signal(self, pid: int, signum: int) -> bool:
        return signal_group(pid, signum)

    def sweep(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def find_members(self, kernels: Collection[int]) -> Iterator[tuple[int, int]]:
        for pid in psutil.pids() if kernels else ():
            with contextlib.suppress(OSError):
                session = os.getsid(pid)
                if session in kernels:
                    yield pid, session


class SharedSession:
    """The session and process group of an agent, shared with its only kernel. The agent must not signal this group.

    The agent is a subreaper, so processes that the kernel leaves behind become the agent's children. Every process
    below the agent belongs to the kernel, whatever session the process is in.
    """

    is_shared = True

    def signal(self, pid: int, signum: int) -> bool:
        children: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):  # the kernel gets its signal all the same
            children = psutil.Process(pid).children(recursive=True)
        try:
            os.kill(pid, signum)
        except (ProcessLookupError, PermissionError):
            return False
        for process in children:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == os.getpgrp():
                    process.send_signal(signum)
        return True

    def sweep(self, pid: int) -> None:
        killed: set[int] = set()
        for _ in range(_SWEEPS):
            if not (fresh := [process for process in _find_descendants() if process.pid not in killed]):
                return
            for process in fresh:
                killed.add(process.pid)
                with contextlib.suppress(psutil.Error):
                    process.kill()
        log.error("pid=%d has left processes that fork faster than they can be killed", pid)

    def find_members(self, kernels: Collection[int]) -> Iterator[tuple[int, int]]:
        for pid in kernels:
            yield from ((process.pid, pid) for process in _find_descendants())


def find_by_output(file: Path) -> Iterator[int]:
    """Yield the leaders of sessions of this user whose standard output is this file."""
    try:
        wanted = file.stat()
    except OSError:
        return
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == pid and os.path.samestat(os.stat(f"/proc/{pid}/fd/1"), wanted):
                yield pid


def kill_outsiders() -> None:
    """Kill the descendants of this process that have left its group, because a signal to the group misses them."""
    for process in _find_descendants():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) != os.getpgrp():
                process.kill()


def _find_descendants() -> list[psutil.Process]:
    """Return the live processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
