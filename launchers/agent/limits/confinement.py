"""The limits on the processes of one lease: a control group, or RLIMIT_DATA and a watch over their memory."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from roost.launchers.agent.machine.sessions import Session
from roost.placement.model.format import format_bytes

from .cgroups import Cgroup

log = logging.getLogger(__name__)

_KILLED = -9
_MAPPED_BYTES, _STACK_BYTES = 256 << 20, 8 << 20
"""How much memory a kernel maps but hardly uses, and how much the stack of one thread takes.

Libraries start one thread per CPU. A kernel with numpy maps 270 MiB on two CPUs.
"""


class Confinement(Protocol):
    """The limits of one lease. After a restart of the kernel, they hold for the new kernel."""

    memory_bytes: int
    """The most memory that all processes of the lease may use together; 0: no limit."""

    def open_entries(self) -> tuple[int, ...]:
        """Return descriptors with which a new kernel calls `cgroups.enter`. The caller closes them."""

    def reset(self) -> None:
        """Forget the last kernel: another one is about to start."""

    def begin(self, pid: int) -> None:
        """Limit and watch the kernel `pid`, which has just begun to listen on its ports."""

    def explain_end(self, code: int | None) -> str:
        """Return a clause that says that the kernel was killed for its use of memory; empty if it was not."""

    def measure(self) -> int:
        """Return the bytes of memory in use."""

    @property
    def peak_bytes(self) -> int:
        """The most memory that was measured; 0 if it never was."""

    def close(self) -> None:
        """Stop watching. The limits stay."""

    async def end(self, others: Cgroup | None) -> None:
        """End the remaining processes of the agent's group for the lease. With `others`, move them there instead."""


def describe_excess(used_bytes: int, most_bytes: int) -> str:
    return f"was killed: it used {format_bytes(used_bytes)} of its {format_bytes(most_bytes)} of memory"


class ManagedConfinement:
    """The control group of a pod or container, with the agent and its only kernel. The manager limits it."""

    def __init__(self, group: Cgroup, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._group = group
        self._kills = 0

    def open_entries(self) -> tuple[int, ...]:
        return ()

    def reset(self) -> None:
        self._kills = self._group.kills

    def begin(self, pid: int) -> None:
        pass

    def explain_end(self, code: int | None) -> str:
        if code not in (None, _KILLED) or not self._has_killed():
            return ""
        return describe_excess(max(self.memory_bytes, self.peak_bytes), self.memory_bytes)

    def _has_killed(self) -> bool:
        """True if the system has killed a process here since the last kernel began."""
        return self._group.kills > self._kills

    def measure(self) -> int:
        return self._group.used_bytes

    @property
    def peak_bytes(self) -> int:
        return self._group.peak_bytes

    def close(self) -> None:
        pass

    async def end(self, others: Cgroup | None) -> None:
        pass


class GroupConfinement(ManagedConfinement):
    """A control group that the agent has made.

    The system kills its processes if they exceed the memory limit.
    """

    def __init__(self, group: Cgroup, memory_bytes: int) -> None:
        super().__init__(group, memory_bytes)
        self._is_full = False
        if memory_bytes:
            group.watch(self._on_full)  # all processes of the group end together, as with version 2

    def open_entries(self) -> tuple[int, ...]:
        return self._group.open_entries()

    def reset(self) -> None:
        super().reset()
        self._is_full = False

    def _on_full(self) -> None:
        self._is_full = True
        self._group.kill()

    def _has_killed(self) -> bool:
        return self._is_full or super()._has_killed()

    def close(self) -> None:
        self._group.close()

    async def end(self, others: Cgroup | None) -> None:
        if others is not None:
            for pid in self._group.pids():
                with contextlib.suppress(OSError):
                    others.add(pid)
        if not await self._group.end():
            log.error("processes %s do not die: they hang in the operating system", self._group.pids())


class WatchedConfinement:
    """A limit for each process (RLIMIT_DATA), and a limit on the use of all together, which `measure` checks.

    RLIMIT_DATA is the lease's memory plus memory that a kernel maps but hardly uses, such as stacks of
    threads. An allocation beyond it fails, in Python with a `MemoryError`.
    """

    def __init__(self, memory_bytes: int, session: Session, *, pid: int = 0) -> None:
        self.memory_bytes = memory_bytes
        self.pid = pid
        self._session = session
        self._peak_bytes = self._excess_bytes = 0

    def open_entries(self) -> tuple[int, ...]:
        return ()

    def reset(self) -> None:
        self.pid = self._peak_bytes = self._excess_bytes = 0

    def begin(self, pid: int) -> None:
        self.pid = pid
        with contextlib.suppress(OSError, ValueError):  # it has ended, or may have even less
            most = self.memory_bytes + _MAPPED_BYTES + _STACK_BYTES * (os.cpu_count() or 1)
            soft, hard = resource.prlimit(pid, resource.RLIMIT_DATA)  # the application's own may be lower
            lower = most if soft == resource.RLIM_INFINITY else min(soft, most)
            lowest = most if hard == resource.RLIM_INFINITY else min(hard, most)
            resource.prlimit(pid, resource.RLIMIT_DATA, (lower, lowest))

    def explain_end(self, code: int | None) -> str:
        return describe_excess(self._excess_bytes, self.memory_bytes) if self._excess_bytes else ""

    def measure(self) -> int:
        return self.add_up([pid for pid, _ in self._session.find_members([self.pid])] if self.pid else [])

    def add_up(self, pids: Collection[int]) -> int:
        """Return the bytes of memory that these processes use, and kill the kernel if they exceed the limit.

        `pids` are all processes of the kernel. At first, a shared page counts once for each process. If the sum exceeds
        the limit, only each process's share of the page counts.
        """
        used = sum(map(_read_resident, pids))
        if used > self.memory_bytes:  # it may be less: here, pages that two processes share count twice
            used = sum(map(_read_own, pids))
        if used > self.memory_bytes:
            self._excess_bytes = used
            self._session.signal(self.pid, -_KILLED)
        self._peak_bytes = max(self._peak_bytes, used)
        return used

    @property
    def peak_bytes(self) -> int:
        return self._peak_bytes

    def close(self) -> None:
        pass

    async def end(self, others: Cgroup | None) -> None:
        self.pid = 0


def is_watched(pid: int) -> bool:
    """True if a `WatchedConfinement` has limited this process, maybe that of an earlier agent."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
    except OSError:
        return False


def _read_resident(pid: int) -> int:
    """Return the bytes of memory of a process, without pages of files. Shared pages count in full."""
    return _read_bytes(pid, "status", "RssAnon", "RssShmem", "VmSwap")


def _read_own(pid: int) -> int:
    """Return the bytes of memory of a process, without pages of files.

    Its share of each shared page counts.
    """
    return _read_bytes(pid, "smaps_rollup", "Pss_Anon", "Pss_Shmem", "SwapPss")


def _read_bytes(pid: int, file: str, *names: str) -> int:
    """Return the sum of the lines `names` in a file of /proc/PID, in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.partition(":")[0] in names)
