"""Control groups (cgroups): the system limits the memory of a group of processes, and weighs its CPU time.

Version 1 has a tree of folders per controller, version 2 has one tree. Source: cgroups(7), and the files
`admin-guide/cgroup-v1/memory.rst` and `admin-guide/cgroup-v2.rst` of Linux' documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_AGENT, _OTHERS = "roost-agent", "roost-others"
_SHARES_PER_CPU, _MOST_SHARES = 1024, 1 << 18
_WEIGHT_PER_CPU, _MOST_WEIGHT = 100, 10_000
_PERIOD_US = 100_000
_LEAST_QUOTA_US, _MOST_QUOTA_US = 1_000, 2**44 - 1
"""The bounds of a CPU quota: `min_cfs_quota_period` and `max_cfs_runtime` in Linux' kernel/sched/core.c."""
_NO_LIMIT = 1 << 60
"""Version 1 shows a number of bytes above this one if a group's memory is not limited."""
_GONE_S, _PAUSE_S = 5.0, 0.005
"""How long killed processes may take to leave their group, and the pause between two checks."""


class NoCgroups(Exception):
    """An error: this process cannot use control groups. Its text gives the reason as a clause."""


class Cgroup:
    """A control group, which need not exist yet.

    With version 1 it has two folders: for memory and for CPUs.
    """

    def __init__(self, memory: Path, cpu: Path, *, is_v1: bool) -> None:
        self._memory, self._cpu, self._is_v1 = memory, cpu, is_v1
        self._folders = (memory, cpu) if is_v1 else (memory,)
        self._event: int | None = None

    def make(self) -> None:
        for folder in self._folders:
            folder.mkdir(exist_ok=True)

    def child(self, name: str) -> Cgroup:
        return Cgroup(self._memory / name, self._cpu / name, is_v1=self._is_v1)

    def names(self) -> set[str]:
        """Return the names of the groups in this group; empty if this group does not exist."""
        found: set[str] = set()
        for folder in self._folders:
            with contextlib.suppress(OSError):
                found.update(each.name for each in folder.iterdir() if each.is_dir())
        return found

    def limit_memory(self, most_bytes: int) -> None:
        """Limit the group's memory to `most_bytes`.

        With version 1, this is the sum of memory and swap. With version 2, the group gets no swap.
        """
        if self._is_v1:
            _write(self._memory / "memory.limit_in_bytes", most_bytes)
            with contextlib.suppress(OSError):  # a system without the accounting of swap has no such file
                _write(self._memory / "memory.memsw.limit_in_bytes", most_bytes)
        else:
            _write(self._memory / "memory.max", most_bytes)
            with contextlib.suppress(OSError):
                _write(self._memory / "memory.swap.max", 0)
            _write(self._memory / "memory.oom.group", 1)

    def weigh(self, cpus: float, most_cpus: float = 0.0) -> None:
        """Give the group CPU time in proportion to `cpus` when CPUs are short.

        The group never gets more than `most_cpus`, unless `most_cpus` is 0.
        """
        quota_us = _clamp(most_cpus * _PERIOD_US, _LEAST_QUOTA_US, _MOST_QUOTA_US)
        if self._is_v1:
            _write(self._cpu / "cpu.shares", _clamp(cpus * _SHARES_PER_CPU, 2, _MOST_SHARES))
            if most_cpus:
                _write(self._cpu / "cpu.cfs_period_us", _PERIOD_US)
                _write(self._cpu / "cpu.cfs_quota_us", quota_us)
        else:
            _write(self._cpu / "cpu.weight", _clamp(cpus * _WEIGHT_PER_CPU, 1, _MOST_WEIGHT))
            if most_cpus:
                _write(self._cpu / "cpu.max", f"{quota_us} {_PERIOD_US}")

    def pass_on(self) -> None:
        """Enable the memory and CPU controllers for the groups in this group.

        Version 1 needs no such step.
        """
        if not self._is_v1:
            _write(self._memory / "cgroup.subtree_control", "+memory +cpu")

    def add(self, pid: int) -> None:
        """Move a process with its threads to this group, but not its children. Do nothing if it has ended."""
        for folder in self._folders:
            try:
                _write(folder / "cgroup.procs", pid)
            except ProcessLookupError:
                return

    def open_entries(self) -> tuple[int, ...]:
        """Return descriptors of files, with which a process joins this group by `enter`. The caller closes them."""
        # Version 1 moves single threads, and a thread that moves itself waits for no lock of the whole system. Else all
        # threads that are started meanwhile would wait with it, for about 10 ms.
        name = "tasks" if self._is_v1 else "cgroup.procs"
        with contextlib.ExitStack() as undo:
            opened = []
            for folder in self._folders:
                opened.append(os.open(folder / name, os.O_WRONLY | os.O_CLOEXEC))
                undo.callback(os.close, opened[-1])
            undo.pop_all()
        return tuple(opened)

    def pids(self) -> set[int]:
        """Return the pids of the processes in this group."""
        found: set[int] = set()
        for folder in self._folders:
            found.update(map(int, _read(folder / "cgroup.procs").split()))
        return found

    @property
    def most_bytes(self) -> int:
        """The limit of the group's memory. It is 0 if there is none."""
        most = _number(_read(self._memory / ("memory.limit_in_bytes" if self._is_v1 else "memory.max")))
        return most if most < _NO_LIMIT else 0

    @property
    def used_bytes(self) -> int:
        """The bytes of memory in use, without cached files that the system can drop; 0 if the group is gone."""
        used, cache = (
            ("usage_in_bytes", "total_inactive_file") if self._is_v1 else ("current", "inactive_file")
        )
        dropped = _find_number(_read(self._memory / "memory.stat"), cache)
        return max(0, _number(_read(self._memory / f"memory.{used}")) - dropped)

    @property
    def peak_bytes(self) -> int:
        """The most bytes of memory that were ever in use, with cached files. It never exceeds the limit."""
        return _number(_read(self._memory / ("memory.max_usage_in_bytes" if self._is_v1 else "memory.peak")))

    @property
    def kills(self) -> int:
        """How many processes the system has killed here because the group had no memory left."""
        text = _read(self._memory / ("memory.oom_control" if self._is_v1 else "memory.events"))
        return _find_number(text, "oom_kill")

    def watch(self, on_full: Callable[[], object]) -> None:
        """With version 1, call `on_full` when the group has no memory left and the system kills one process here.

        With version 2 this does nothing, because the system then kills the whole group by itself.
        """
        if not self._is_v1 or self._event is not None:
            return
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            control = os.open(self._memory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _write(self._memory / "cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
        except OSError:  # then only one process ends
            os.close(event)
            return
        self._event = event

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(event)
                if self._memory.is_dir():  # the removal of the group is reported, too
                    on_full()

        asyncio.get_running_loop().add_reader(event, read)

    def close(self) -> None:
        """Stop watching."""
        if self._event is not None:
            asyncio.get_running_loop().remove_reader(self._event)
            os.close(self._event)
            self._event = None

    def kill(self) -> None:
        """Send SIGKILL to all processes in this group and in the groups in it."""
        for name in self.names():
            self.child(name).kill()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> bool:
        """Remove this group and the groups in it. Return False if processes are left in one of them."""
        is_gone = True
        for name in self.names():
            is_gone &= self.child(name).remove()
        for folder in self._folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                is_gone = False
        return is_gone

    async def end(self) -> bool:
        """Kill all processes in this group and remove the group. Return False if one lives on after 5 s."""
        self.close()
        deadline = time.monotonic() + _GONE_S
        while time.monotonic() < deadline:
            self.kill()
            if self.remove():
                return True
            await asyncio.sleep(_PAUSE_S)  # a process that was killed leaves its group a moment later
        return False


class CgroupTree:
    """The control groups of one agent.

    `group` contains one group for each lease, and `others` for zygotes and for all other kernels. They are
    below the agent's own group, so its limits hold for kernels too.
    """

    def __init__(self, name: str, *, own: Path = _OWN, root: Path = ROOT) -> None:
        """Find the agent's own group. Raises `NoCgroups`."""
        self.version, memory, cpu = _find_own(own, root)
        if self.version == 2:
            if memory.name in (_AGENT, _OTHERS):  # an earlier agent has moved its processes there
                memory = cpu = memory.parent
            known = _read(memory / "cgroup.controllers").split()
            if not {"memory", "cpu"} <= set(known):
                raise NoCgroups("the system gives this control group no control of memory and CPUs")
        for folder in {memory, cpu}:
            if not os.access(folder, os.W_OK) or not os.access(folder / "cgroup.procs", os.W_OK):
                raise NoCgroups(f"this user cannot write to {folder}")
        self._own = Cgroup(memory, cpu, is_v1=self.version == 1)
        self._folder = memory
        self.group = self._own.child(name)
        self.others = self.group.child(_OTHERS)
        if self.version == 2:
            self._check_neighbours()

    def open(self, cpus: float) -> None:
        """Make the groups. `cpus` is the weight of all kernels together when CPUs are short. Raises `NoCgroups`."""
        try:
            if self.version == 2:
                self._leave_own_group()
            for group, weight in ((self.group, cpus), (self.others, 1.0)):
                group.make()
                group.weigh(weight)
                if group is self.group:
                    group.pass_on()
        except OSError as problem:
            self.group.remove()
            raise NoCgroups(f"{problem.filename or self._folder}: {problem.strerror}") from None

    def lease_names(self) -> set[str]:
        """Return the names of the leases' groups that exist."""
        return self.group.names() - {_OTHERS}

    @property
    def is_open(self) -> bool:
        """True if this agent or an earlier one has made the groups."""
        return _OTHERS in self.group.names()

    def _check_neighbours(self) -> None:
        """Raise `NoCgroups` if the agent's own group has processes other than the agent and its descendants.

        The agent must empty its group (`_leave_own_group`), but must not move processes of other programs. A group that
        systemd has delegated to this user is accepted.
        """
        with contextlib.suppress(OSError):
            if (
                os.getxattr(self._folder, "user.delegate") == b"1"
            ):  # systemd has given it to this user as a whole
                return
        own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        if self._own.pids() - own:
            raise NoCgroups(
                "other processes are in the agent's control group, which was not delegated to this user"
            )

    def _leave_own_group(self) -> None:
        """Move all processes of the agent's own group to a group in it. Only an empty group can limit groups in it."""
        rest = self._own.child(_AGENT)
        rest.make()
        for pid in self._own.pids():
            rest.add(pid)
        self._own.pass_on()


def enter(entries: tuple[int, ...]) -> None:
    """Move this process to a control group. `entries` are from the group's `open_entries`.

    With version 1 this moves only the calling thread, so call it before other threads start.
    """
    for each in entries:
        os.write(each, b"0")


def find_own_group(*, own: Path = _OWN, root: Path = ROOT) -> Cgroup:
    """Return the control group of this process, for reading."""
    version, memory, cpu = _find_own(own, root)
    return Cgroup(memory, cpu, is_v1=version == 1)


def _find_own(own: Path, root: Path) -> tuple[int, Path, Path]:
    """Return the version of control groups, and the folders of this process's group for memory and for CPUs."""
    lines = [line.split(":", 2) for line in _read(own).splitlines()]
    paths = {controller: path for _, each, path in lines for controller in each.split(",")}
    if "memory" in paths and "cpu" in paths:
        return 1, _find(root / "memory", paths["memory"]), _find(root / "cpu", paths["cpu"])
    folder = _find(root, paths.get("", "/"))
    return 2, folder, folder


def _find(base: Path, path: str) -> Path:
    """Return the folder of a group, or `base` if there is none: in a container, `path` may be that of the host."""
    folder = base / path.lstrip("/")
    return folder if folder.is_dir() else base


def _clamp(value: float, least: int, most: int) -> int:
    return round(max(least, min(value, most)))


def _write(path: Path, value: object) -> None:
    """Write a value to a file of a group in one call, as Linux requires. Raises `OSError` with the file's name."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    except OSError as problem:
        raise OSError(problem.errno, os.strerror(problem.errno or errno.EIO), str(path)) from None
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _find_number(text: str, name: str) -> int:
    """Return the number behind a name in lines of names and numbers; 0 if it is not there."""
    pairs = (line.split() for line in text.splitlines())
    return next((int(pair[1]) for pair in pairs if pair[0] == name), 0)


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0
