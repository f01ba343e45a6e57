"""Root's rules for this machine: totals, a limit for each named user, and one for each other user.

They stand in `/etc/roost/machine.toml`. A user's own configuration can only lower them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import pwd
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile, read_text
from roost.placement.model.json_codec import WireError, decode
from roost.placement.model.memory_size import read_bytes

FILE = Path("/etc/roost/machine.toml")
_MOST_GPUS = 1024
EVERYBODY = "*"
"""The name of the table for all users without a table."""


class BadRules(Exception):
    """The rules cannot be used. The text is a sentence without a full stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """Amounts of this machine, as in the file. None: no limit. Raises `ValueError` for an amount that cannot be."""

    cpus: float | None = None
    memory: float | str | None = None
    """Bytes, or a text such as `8GiB`."""
    gpus: float | None = None

    def __post_init__(self) -> None:
        if any(amount is not None and amount < 0 for _, amount in self):
            raise ValueError("no amount can be negative")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else read_bytes(self.memory)

    def __iter__(self) -> Iterator[tuple[str, float | None]]:
        return iter((("cpus", self.cpus), ("memory", self.memory_bytes), ("gpus", self.gpus)))


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRules:
    """The content of `/etc/roost/machine.toml`. Without that file, nothing is limited."""

    cpus: float | None = None
    memory: float | str | None = None
    gpus: int | tuple[str, ...] | None = None
    """The number of the machine's GPUs, or their ids. All agents use these alone. None: NVML lists them."""
    gpu_model: str = ""
    users: Mapping[str, Amounts] = field(default_factory=dict)
    """The limit of each user, by name, uid or `EVERYBODY`."""

    def __post_init__(self) -> None:
        if isinstance(self.gpus, int) and not 0 <= self.gpus <= _MOST_GPUS:
            raise ValueError(f"gpus must be a number from 0 to {_MOST_GPUS}")
        if len(set(self.gpu_ids or ())) < len(self.gpu_ids or ()):
            raise ValueError("gpus names one id twice")
        self.find_totals(Amounts())

    @property
    def is_given(self) -> bool:
        """True if the file says something: then nobody's configuration can raise what the machine has."""
        return self != MachineRules()

    @property
    def gpu_ids(self) -> tuple[str, ...] | None:
        return tuple(map(str, range(self.gpus))) if isinstance(self.gpus, int) else self.gpus

    def find_totals(self, machine: Amounts) -> Amounts:
        """Return what this machine has. `machine` has the measured CPUs and memory."""
        return Amounts(
            cpus=machine.cpus if self.cpus is None else self.cpus,
            memory=machine.memory if self.memory is None else self.memory,
            gpus=None if self.gpu_ids is None else len(self.gpu_ids),
        )

    def limit_of(self, uid: int) -> Amounts:
        """Return what this user may hold."""
        names = (name_user(uid), str(uid), EVERYBODY)
        return next((self.users[name] for name in names if name in self.users), Amounts())


@functools.lru_cache(maxsize=1024)
def name_user(uid: int) -> str:
    """Return the name of a user; `uid 1001` if the system knows none. The system may ask a server for it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid {uid}"


def read_rules(file: Path = FILE, *, root: int = 0) -> MachineRules:
    """Return the rules in a file that only root can change; no rules if there is none. Raises `BadRules`.

    `root` is the uid that must own the file.
    """
    try:
        status = file.lstat()
        text = read_text(file)
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
        return _parse(text)
    except WireError as problem:
        what = str(problem).removeprefix(MachineRules.__name__).rstrip(".")
        raise BadRules(f"{file}{what.replace('.', ': ', 1) if what.startswith('.') else what}") from None
    except (ValueError, RecursionError) as problem:  # a number with thousands of digits is a ValueError, too
        raise BadRules(f"{file} is not TOML: {problem}") from None


@functools.lru_cache(maxsize=1)
def _parse(text: str) -> MachineRules:
    """Return the rules in a text. The file is read before each promise, and seldom changes."""
    for name in ("tomllib", "tomli"):  # the second one for Python 3.10
        with contextlib.suppress(ImportError):
            return decode(MachineRules, importlib.import_module(name).loads(text))
    raise BadRules(f"{FILE} cannot be read without the package tomli: run `pip install tomli`")
