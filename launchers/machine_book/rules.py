"""Root's rules for this machine: totals, a reserve for the system, and limits of users and groups.

They stand in `/etc/roost/machine.toml`. A user's own configuration can only lower them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pwd
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from grp import getgrgid
from pathlib import Path
from typing import Any

from roost.launchers.daemon.file_input import UnfitFile, read_text
from roost.placement.model.memory_size import read_bytes

FILE = Path("/etc/roost/machine.toml")
_MOST_BYTES = 1 << 20
_MOST_GPUS = 1024
_LARGEST = 1_000_000
"""The largest number of CPUs or GPUs."""
_FRESH_S = 60.0
"""How long the name and the groups of a user count as known."""
EVERYBODY = "*"
"""The name of a table of limits for each user that has no table of its own."""


class BadRules(Exception):
    """The rules cannot be used. The text is a sentence without a full stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """Amounts of this machine. None: no limit."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: float | None = None

    def __iter__(self) -> Any:
        return iter((("cpus", self.cpus), ("memory", self.memory_bytes), ("gpus", self.gpus)))


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRules:
    """The rules of `/etc/roost/machine.toml`. Without that file, nothing is limited."""

    is_given: bool = False
    """True if there is a file, which may be empty: then nobody's configuration can raise what the machine has."""
    totals: Amounts = Amounts()
    """The amounts of the machine. `gpus` is the number of declared GPUs."""
    reserve: Amounts = Amounts()
    """The amounts that are kept for the system."""
    gpu_ids: tuple[str, ...] | None = None
    """The ids of the GPUs that all agents use; None: NVML lists them."""
    gpu_model: str = ""
    users: Mapping[str, Amounts] = field(default_factory=dict)
    """The limit of each user, by name or uid."""
    groups: Mapping[str, Amounts] = field(default_factory=dict)
    """The limit of all members of a group together, by its name or gid."""
    shows_names: bool = False
    """True if a user may see the names of others who hold something."""

    def find_totals(self, machine: Amounts) -> Amounts:
        """Return what this machine has. `machine` has the measured CPUs and memory."""
        return Amounts(
            cpus=machine.cpus if self.totals.cpus is None else self.totals.cpus,
            memory_bytes=(
                machine.memory_bytes if self.totals.memory_bytes is None else self.totals.memory_bytes
            ),
            gpus=self.totals.gpus,
        )

    def find_room(self, machine: Amounts) -> Amounts:
        """Return the CPUs and the memory for kernels: the totals without the reserve for the system."""
        totals = self.find_totals(machine)
        return Amounts(
            cpus=max(0.0, (totals.cpus or 0.0) - (self.reserve.cpus or 0.0)),
            memory_bytes=max(0, (totals.memory_bytes or 0) - (self.reserve.memory_bytes or 0)),
        )

    def limit_of(self, uid: int) -> Amounts:
        """Return what this user may hold."""
        return self.users.get(self.find_table(uid), Amounts())

    def find_table(self, uid: int) -> str:
        """Return the name of the table in `users` that applies to this user; empty if none does."""
        return next((name for name in (name_user(uid), str(uid), EVERYBODY) if name in self.users), "")

    def groups_of(self, uid: int) -> dict[str, Amounts]:
        """Return the limits of the groups to which this user belongs."""
        if not self.groups:
            return {}
        names = find_groups(uid)
        return {name: limit for name, limit in self.groups.items() if name in names}


def read_rules(file: Path = FILE, *, root: int = 0) -> MachineRules:
    """Return the rules in a file that only root can change; no rules if there is none. Raises `BadRules`.

    `root` is the uid that must own the file.
    """
    try:
        status = file.lstat()
        text = read_text(file, most_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return MachineRules()
    except UnfitFile as problem:
        raise BadRules(str(problem)) from None
    except OSError as problem:
        raise BadRules(f"{file} cannot be read: {problem.strerror}") from None
    if status.st_uid != root or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadRules(
            f"{file} can be changed by others than root: run `chown root:root {file}; chmod 644 {file}`"
        )
    try:
        return _build(_load(text))
    except BadRules as problem:
        raise BadRules(f"{file}: {problem}") from None


def find_groups(uid: int) -> frozenset[str]:
    """Return the names and gids of a user's groups, as of a minute ago; none if the system does not know the user."""
    return _look_up(uid, time.monotonic() // _FRESH_S)[1]


def name_user(uid: int) -> str:
    """Return the name of a user, as of a minute ago; the uid if the system knows none."""
    return _look_up(uid, time.monotonic() // _FRESH_S)[0]


@functools.lru_cache(maxsize=1024)
def _look_up(uid: int, minute: float) -> tuple[str, frozenset[str]]:
    """Return a user's name, and the names and gids of the user's groups. The system may ask a server for them."""
    try:
        user = pwd.getpwuid(uid)
        gids = os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OverflowError, OSError):
        return str(uid), frozenset()
    names = set[str]()
    for gid in gids:
        with contextlib.suppress(KeyError):
            names.add(getgrgid(gid).gr_name)
    return user.pw_name, frozenset(names | set(map(str, gids)))


def _load(text: str) -> dict[str, Any]:
    toml: Any = None
    for name in ("tomllib", "tomli"):  # the second one for Python 3.10
        with contextlib.suppress(ImportError):
            toml = toml or importlib.import_module(name)
    if toml is None:
        raise BadRules("it cannot be read without the package tomli: run `pip install tomli`")
    try:
        document: dict[str, Any] = toml.loads(text)
    except (ValueError, RecursionError) as problem:  # a number with thousands of digits is a ValueError, too
        raise BadRules(f"it is not TOML: {problem}") from None
    return document


def _build(document: dict[str, Any]) -> MachineRules:
    known = {"cpus", "memory", "gpus", "gpu_model", "show_names", "reserve", "users", "groups"}
    _refuse_unknown(document, known, "")
    gpus = document.get("gpus")
    gpu_ids = None if gpus is None else _read_gpus(gpus)
    reserve = _read_amounts(_table(document, "reserve"), "reserve", ("cpus", "memory"))
    totals = _read_amounts({each: document[each] for each in ("cpus", "memory") if each in document}, "")
    return MachineRules(
        is_given=True,
        totals=Amounts(
            cpus=totals.cpus,
            memory_bytes=totals.memory_bytes,
            gpus=None if gpu_ids is None else len(gpu_ids),
        ),
        reserve=reserve,
        gpu_ids=gpu_ids,
        gpu_model=_typed(document, "gpu_model", str, "text", ""),
        users=_read_limits(document, "users"),
        groups=_read_limits(document, "groups"),
        shows_names=_typed(document, "show_names", bool, "true or false", False),
    )


def _read_gpus(value: Any) -> tuple[str, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_GPUS:
        return tuple(map(str, range(value)))
    is_list = isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)
    if not is_list or len(set(value)) != len(value) or len(value) > _MOST_GPUS:
        raise BadRules('`gpus` must be a number, or a list of different ids such as ["GPU-5ad…"]')
    return tuple(value)


def _read_limits(document: Mapping[str, Any], name: str) -> dict[str, Amounts]:
    table = _table(document, name)
    return {each: _read_amounts(_table(table, each, f"{name}."), f"{name}.{each}") for each in table}


def _read_amounts(
    table: Mapping[str, Any], where: str, names: tuple[str, ...] = ("cpus", "memory", "gpus")
) -> Amounts:
    prefix = f"{where}." if where else ""
    _refuse_unknown(table, set(names), prefix)
    found: dict[str, Any] = {}
    for name, value in table.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name == "memory":
            try:
                found["memory_bytes"] = read_bytes(value)
            except ValueError as problem:
                raise BadRules(f"`{prefix}memory`: {str(problem).rstrip('.')}") from None
        elif is_number and value > _LARGEST and value != float("inf"):
            raise BadRules(f"`{prefix}{name}` is more than any machine has")
        elif is_number and 0 <= value <= _LARGEST:
            found[name] = float(value)
        else:
            raise BadRules(f"`{prefix}{name}` must be a number, 0 or more; it is {value!r:.40}")
    return Amounts(**found)


def _table(document: Mapping[str, Any], name: str, prefix: str = "") -> Mapping[str, Any]:
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise BadRules(f"`{prefix}{name}` must be a table")
    return value


def _typed(document: Mapping[str, Any], name: str, kind: type, what: str, default: Any) -> Any:
    value = document.get(name, default)
    if not isinstance(value, kind):
        raise BadRules(f"`{name}` must be {what}; it is {value!r:.40}")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: set[str], prefix: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise BadRules(f"there is no setting `{prefix}{unknown[0]}`; known are {', '.join(sorted(known))}")


class RulesReader:
    """The rules as they are now. The file is read again only after it has changed."""

    def __init__(self, read: Callable[[], MachineRules] = read_rules, file: Path = FILE) -> None:
        self._read = read
        self._file = file
        self._state: object = self
        self._rules = MachineRules()

    def current(self) -> MachineRules:
        """Return the rules. Raises `BadRules`, each time until the file is mended."""
        try:
            status = self._file.lstat()
            state: object = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
        except OSError:
            state = None
        if state != self._state:
            self._rules = self._read()
            self._state = state
        return self._rules
