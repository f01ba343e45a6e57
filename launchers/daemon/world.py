"""The world of a process: its namespaces, and the control group of its job. A process cannot choose them for a child.

A kernel cannot leave its agent's world. Each world of a user therefore has an agent and a scheduler of its own, for
kernels on this machine. `ROOST_SERVICE_NAME` stands in the place of the world: programs with one name share both.

The rest that a kernel takes over is set in each kernel (`protocol/process_context.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .private_files import FolderError

NAME_VARIABLE = "ROOST_SERVICE_NAME"
"""The environment variable with a name that stands in the place of the world."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
CAP_SYS_NICE, CAP_SYS_RESOURCE, _CAP_SETGID = 23, 24, 6  # from linux/capability.h
_FIRST_USER_NAMESPACE = "user:[4026531837]"  # PROC_USER_INIT_INO, from linux/proc_ns.h
_HIERARCHIES = ("memory", "cpu", "cpuset", "pids", "freezer")
"""The hierarchies that count with version 1 of control groups."""
_OWN_GROUP = "roost-"
"""The names of roost's own control groups begin with this text (`agent/limits/cgroups.py`)."""
_USER_SLICE = re.compile(r"(.*/user\.slice/user-\d+\.slice)(/.*)?")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_STATUS_LINES = re.compile(r"^(CapEff|Umask):\s*(.*)$", re.MULTILINE)


def find_world() -> str:
    """Return eight hex digits that identify the world of this process, or the name that stands in its place.

    Empty if the system is not Linux. roost's daemons, the kernels, and the processes that kernels start are in the
    world of their application. Raises `FolderError` for a name that no folder can have.
    """
    if name := os.environ.get(NAME_VARIABLE, ""):
        if not _NAME.fullmatch(name):
            raise FolderError(
                f"{NAME_VARIABLE}={name!a:.60} is no name: give at most 40 letters, digits, - and _"
            )
        return name
    if sys.platform != "linux":
        return ""
    parts = [read_namespace(each) for each in _NAMESPACES]
    parts += choose_groups(_read(Path("/proc/self/cgroup")))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def name_in_world(name: str, world: str | None = None) -> str:
    """Return the name of a folder that belongs to a world: this process's own, unless another one is given."""
    world = find_world() if world is None else world
    return f"{name}.{world}" if world else name


def read_namespace(name: str) -> str:
    """Return the identity of this process's namespace `net`, `pid`, …; empty if the system has none."""
    return _read_link(Path("/proc/self/ns") / name)


def read_status(process: Path) -> dict[str, str]:
    """Return the lines of a process's file `status` that concern its context, by their names."""
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


def choose_groups(lines: str) -> list[str]:
    """Return the control groups that belong to a world. `lines` has the content of /proc/self/cgroup.

    With version 1, the result has one path for each hierarchy that counts.
    """
    paths: dict[str, str] = {}
    for line in lines.splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    counted = [paths[name] for name in _HIERARCHIES if name in paths]
    return [_choose(path) for path in (*counted, paths.get("", "/"))]


def _choose(path: str) -> str:
    """Return the group of a path that counts.

    roost's own groups do not count. Each login and each desktop application has a group of its own, and does not count
    either. A service or a batch job counts.
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
    while inner and not _is_service(inner[-1]):
        inner.pop()
    return "/".join([login[1], *inner])


def _is_service(name: str) -> bool:
    """True if systemd's name of a group is that of a service.

    Desktops start applications as services `app-…`, and the user's own manager is `user@….service`.
    """
    return name.endswith(".service") and not name.startswith("app-") and not _USER_MANAGER.fullmatch(name)


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
