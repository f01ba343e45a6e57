"""The world of a process: everything that the process cannot choose for a child.

    namespaces                     mount, network, PID, user and the others, by the numbers that Linux gives them
    root folder, security          chroot, capabilities, no_new_privs, seccomp, the profile of AppArmor or SELinux
    control group                  of a batch job, a service or a container (see `choose_groups`)
    hard limits                    without CAP_SYS_RESOURCE, because nobody else can raise them
    niceness, scheduling policy    without CAP_SYS_NICE
    groups                         without CAP_SETGID

A kernel cannot leave its agent's world. Each world of a user therefore has an agent and a scheduler of its own. The
rest is set in each kernel (`protocol/process_context.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_INHERITED = ("CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")
"""Lines of /proc/self/status that a child takes over, also when it executes a program."""
CAP_SYS_NICE, CAP_SYS_RESOURCE, _CAP_SETGID = 23, 24, 6  # from linux/capability.h
_FIRST_USER_NAMESPACE = "user:[4026531837]"  # PROC_USER_INIT_INO, from linux/proc_ns.h
_HIERARCHIES = ("memory", "cpu", "cpuset", "pids", "freezer")
"""The hierarchies that count with version 1 of control groups."""
_OWN_GROUP = "roost-"
"""The names of roost's own control groups begin with this text (`agent/limits/cgroups.py`)."""
_USER_SLICE = re.compile(r"(.*/user\.slice/user-\d+\.slice)(/.*)?")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_LIMIT_FILES = {
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "max",
    "cpu.max": "max",
    "cpuset.cpus": "",
    "io.max": "",
    "cpu.cfs_quota_us": "-1",
}
"""Files of a control group that limit it, each with its content if there is no limit. pids.max is left out, because
systemd sets it in each group."""
_STATUS_LINES = re.compile(rf"^({'|'.join((*_INHERITED, 'CapEff', 'Umask'))}):\s*(.*)$", re.MULTILINE)
_SELF = Path("/proc/self")
_STATUS, _GROUPS = _SELF / "status", _SELF / "cgroup"
_NAMESPACE_LINKS = tuple(_SELF / "ns" / name for name in _NAMESPACES)
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_latest: tuple[tuple[object, ...], str] = (), ""
"""The facts of the latest answer of `find_world`, and that answer."""
_NO_LIMIT = 1 << 60
"""Version 1 shows a number of bytes above this one if a group's memory is not limited."""


def find_world() -> str:
    """Return eight hex digits that identify the world of this process; empty if the system is not Linux.

    roost's daemons, the kernels, and the processes that kernels start are in the world of their application.
    """
    global _latest
    if sys.platform != "linux":
        return ""
    facts = _read_facts()
    if facts != _latest[0]:
        described = json.dumps(describe_world(), sort_keys=True, default=str)
        _latest = facts, hashlib.sha256(described.encode()).hexdigest()[:8]
    return _latest[1]


def _read_facts() -> tuple[object, ...]:
    """Return what `describe_world` depends on, in a third of its time. A process seldom changes its world."""
    status = _read(_STATUS)
    begin = status.find("\nCapInh:")
    return (
        *(_read_link(path) for path in _NAMESPACE_LINKS),
        status[begin : status.find("\nCpus_allowed:", begin)],  # the lines of security
        _read(_GROUPS),
        *(resource.getrlimit(number)[1] for number in _LIMITS),
        *(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.getegid(), *os.getgroups()),
        os.stat("/").st_ino,
    )


def name_in_world(name: str, world: str | None = None) -> str:
    """Return the name of a folder that belongs to a world: this process's own, unless another one is given."""
    world = find_world() if world is None else world
    return f"{name}.{world}" if world else name


def describe_world(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> dict[str, Any]:
    """Return the parts of this process's world by name."""
    status = read_status(proc / "self")
    own = os.stat("/")
    parts: dict[str, Any] = {
        "namespaces": {name: _read_link(proc / "self" / "ns" / name) for name in _NAMESPACES},
        "root": [own.st_dev, own.st_ino],
        "security": [status.get(name, "") for name in _INHERITED],
        "profile": _read(proc / "self" / "attr" / "current"),
        "control groups": choose_groups(_read(proc / "self" / "cgroup"), groups),
    }
    if not is_privileged(CAP_SYS_RESOURCE, status):
        parts["hard limits"] = read_hard_limits()
    if not is_privileged(CAP_SYS_NICE, status):
        parts["priority"] = [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]
    if not may_set_groups(status):
        parts["groups"] = [os.getegid(), sorted(os.getgroups())]
    return parts


def read_namespace(name: str) -> str:
    """Return the identity of this process's namespace `net`, `pid`, …; empty if the system has none."""
    return _read_link(Path("/proc/self/ns") / name)


def read_status(process: Path) -> dict[str, str]:
    """Return the lines of a process's file `status` that concern its world and its context, by their names."""
    return dict(_STATUS_LINES.findall(_read(process / "status")))


def is_privileged(capability: int, status: Mapping[str, str]) -> bool:
    """True if this process has a capability for the whole machine. `status` is from `read_status`.

    Root in a container may lack it. Root of another user namespace seems to have it, but Linux then refuses.
    """
    return _has(capability, status) and read_namespace("user") in ("", _FIRST_USER_NAMESPACE)


def may_set_groups(status: Mapping[str, str]) -> bool:
    """True if this process can choose its groups. Each user namespace decides that by itself."""
    return _has(_CAP_SETGID, status) and _read(Path("/proc/self/setgroups")) != "deny"


def _has(capability: int, status: Mapping[str, str]) -> bool:
    return bool(int(status.get("CapEff", "") or "0", 16) >> capability & 1)


def read_hard_limits() -> dict[str, int]:
    """Return the hard limits by name, without RLIMIT_DATA, which an agent may set in its kernels."""
    names = [name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_DATA"]
    return {name: resource.getrlimit(getattr(resource, name))[1] for name in names}


def choose_groups(lines: str, root: Path) -> list[str]:
    """Return the control groups that belong to a world. `lines` has the content of /proc/self/cgroup.

    With version 1, the result has one path for each hierarchy that counts. `root` has the folders of the groups.
    """
    paths: dict[str, str] = {}
    for line in lines.splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    if not any(name in paths for name in _HIERARCHIES):
        return [_choose(paths.get("", "/"), root)]
    return [_choose(paths[name], root / name) for name in _HIERARCHIES if name in paths] + [
        _choose(paths.get("", "/"), root / "unified")
    ]


def _choose(path: str, base: Path) -> str:
    """Return the group of a path that counts.

    roost's own groups do not count. Each login and each desktop application has a group of its own, and does not
    count either, unless it has a limit. A service or a batch job counts.
    """
    names: list[str] = []
    for name in path.split("/"):
        if name.startswith(_OWN_GROUP):
            break
        names.append(name)
    kept = "/".join(names) or "/"
    login = _USER_SLICE.fullmatch(kept)
    if login is None:
        return kept
    inner = (login[2] or "").split("/")[1:]
    while inner and not _is_service(inner[-1]) and not is_limited(base, [login[1], *inner]):
        inner.pop()
    return "/".join([login[1], *inner])


def _is_service(name: str) -> bool:
    """True if systemd's name of a group is that of a service.

    Desktops start applications as services `app-…`, and the user's own manager is `user@….service`.
    """
    return name.endswith(".service") and not name.startswith("app-") and not _USER_MANAGER.fullmatch(name)


def is_limited(base: Path, names: Sequence[str]) -> bool:
    """True if the group of this path has a limit of its own."""
    folder = base / "/".join(names).lstrip("/")
    for name, without in _LIMIT_FILES.items():
        content = _read(folder / name)
        if content and content.split()[0] != without:
            return True
    most = _read(folder / "memory.limit_in_bytes")
    return most.isdigit() and int(most) < _NO_LIMIT


def _read(path: Path) -> str:
    try:
        with open(path) as file:
            return file.read().strip().rstrip("\0")
    except (OSError, ValueError):
        return ""


def _read_link(path: Path) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return ""
