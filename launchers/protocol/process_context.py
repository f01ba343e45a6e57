"""The context of a process: the part of its inherited state that another process of its user can set, too.

An application sends its context with a start, and its kernel on the same machine gets that context. The rest of what a
kernel takes over is its world (`daemon/world.py`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roost.launchers.daemon.world import (
    CAP_SYS_NICE,
    CAP_SYS_RESOURCE,
    is_privileged,
    may_set_groups,
    read_status,
)

_LIMITS = {
    name.removeprefix("RLIMIT_"): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"  # another name of RLIMIT_NOFILE
}
_IOPRIO_CALLS = {"x86_64": (251, 252), "aarch64": (30, 31)}
"""The numbers of the system calls ioprio_set and ioprio_get, by machine. Source: asm/unistd.h."""
_MOST_CPUS = 8_192
"""The most CPUs that Linux supports (NR_CPUS). A process that asks for all of them gets those that it may use."""
_OWN_AGENT = "set ROOST_SERVICE_NAME to a name for this application, which then has an agent of its own"
_OF_PROCESS = 1  # IOPRIO_WHO_PROCESS, from linux/ioprio.h
_RESETS_ON_FORK = 0x40000000  # SCHED_RESET_ON_FORK, from linux/sched.h


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContext:
    """The context of an application. A field that is None or empty is not known, and is not set."""

    umask: int | None = None
    cpus: tuple[int, ...] = ()
    """The CPUs on which the process may run (its affinity), in order."""
    niceness: int | None = None
    policy: tuple[int, ...] = ()
    """The scheduling policy and its priority, as in sched_setscheduler(2)."""
    io_priority: int | None = None
    """The class and the level of the I/O priority, as in ioprio_set(2)."""
    limits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The soft and the hard limit of each resource, by the name without RLIMIT_. -1 is no limit."""
    groups: tuple[int, ...] = ()
    """The effective group and then the supplementary groups. Empty if this user may not choose them."""


UNKNOWN = ProcessContext()
"""The context of an application on another machine. Its kernels get that of their agent."""


def read_context() -> ProcessContext:
    """Return the context of this thread, which its child processes would take over."""
    status = read_status(Path("/proc/self"))
    if not status:  # not Linux
        return ProcessContext()
    umask = status.get("Umask")  # os.umask reads it only by setting it, which would disturb other threads
    return ProcessContext(
        umask=int(umask, 8) if umask else None,
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
        policy=_read_policy(0),
        io_priority=_read_io_priority(0),
        limits={name: resource.getrlimit(number) for name, number in _LIMITS.items()},
        groups=(os.getegid(), *sorted(os.getgroups())) if may_set_groups(status) else (),
    )


def find_obstacle(context: ProcessContext) -> str:
    """Return why this process cannot start a kernel with this context, as a clause; empty if it can."""
    status = read_status(Path("/proc/self"))
    for name, (_, hard) in context.limits.items():
        own = resource.getrlimit(_LIMITS[name])[1] if name in _LIMITS else hard
        is_raised = own != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > own)
        if is_raised and not is_privileged(CAP_SYS_RESOURCE, status):
            what = f"its hard limit RLIMIT_{name} would be {_say(hard)}, but roost's agent has {_say(own)}"
            return f"{what} and may not raise it: {_OWN_AGENT}"
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if (
        context.niceness is not None
        and context.niceness < niceness
        and not is_privileged(CAP_SYS_NICE, status)
    ):
        what = f"its niceness would be {context.niceness}, but roost's agent has {niceness}"
        return f"{what} and may not lower it: {_OWN_AGENT}"
    return ""


def _say(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def select_at_start(context: ProcessContext) -> ProcessContext:
    """Return the part of a context that a process must have when its program starts. This process's own fills gaps.

    The stacks of a process have the size of the limit at its start. Libraries count the CPUs when they are imported.
    """
    own = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    stack = context.limits.get("STACK", resource.getrlimit(resource.RLIMIT_STACK))
    return ProcessContext(cpus=context.cpus or own, limits={"STACK": stack})


def loosen() -> None:
    """Have this process run on all CPUs that it may use, with the usual priority and the highest limits.

    A daemon serves later applications with other contexts than its starter's, and must not end by a limit of that one.
    It keeps the limits that programs get at their start, or that concern their end.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, range(_MOST_CPUS))
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0) > 0:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    for name, number in _LIMITS.items():
        if name not in ("STACK", "CORE", "NOFILE"):  # `open_files` raises the last one
            with contextlib.suppress(OSError, ValueError):
                hard = resource.getrlimit(number)[1]
                resource.setrlimit(number, (hard, hard))


def choose_groups(context: ProcessContext) -> tuple[int, ...] | None:
    """Return the groups that a kernel must join to have this context; None if it has them already."""
    own = (os.getegid(), *sorted(os.getgroups()))
    return context.groups if context.groups and context.groups != own else None


def set_context(context: ProcessContext, pid: int = 0) -> None:
    """Set priorities and limits of this process (0), before it starts a program, or of all threads of another one.

    Umask and groups are not set: a process can set only its own. Raises `OSError`.
    """
    for tid in _list_threads(pid) if pid else (0,):
        with contextlib.suppress(ProcessLookupError):
            _set_priorities(context, tid)
    for name, wanted in context.limits.items():
        number = _LIMITS.get(name)
        if number is not None and resource.prlimit(pid, number) != wanted:
            resource.prlimit(pid, number, (wanted[0], wanted[1]))


def _set_priorities(context: ProcessContext, tid: int) -> None:
    if context.cpus and os.sched_getaffinity(tid) != set(context.cpus):
        os.sched_setaffinity(tid, context.cpus)
    if context.policy and _read_policy(tid) != context.policy:
        os.sched_setscheduler(tid, context.policy[0], os.sched_param(context.policy[1]))
    if context.niceness is not None and os.getpriority(os.PRIO_PROCESS, tid) != context.niceness:
        os.setpriority(os.PRIO_PROCESS, tid, context.niceness)
    if context.io_priority is not None and _read_io_priority(tid) != context.io_priority:
        _call_io_priority(0, tid, context.io_priority)


def _list_threads(pid: int) -> Iterable[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []


def _read_policy(tid: int) -> tuple[int, ...]:
    policy = os.sched_getscheduler(tid)
    return policy & ~_RESETS_ON_FORK, os.sched_getparam(tid).sched_priority


def _read_io_priority(tid: int) -> int | None:
    found = _call_io_priority(1, tid)
    return None if found is None or found < 0 else found


def _call_io_priority(which: int, *arguments: int) -> int | None:
    """Call ioprio_set (0) or ioprio_get (1); return None if the number of the call is not known here."""
    numbers = _IOPRIO_CALLS.get(os.uname().machine)
    return None if numbers is None else int(_find_syscall()(numbers[which], _OF_PROCESS, *arguments))


@functools.cache
def _find_syscall() -> Callable[..., int]:
    import ctypes  # it costs time, and only this needs it

    syscall: Callable[..., int] = ctypes.CDLL(None).syscall
    return syscall
