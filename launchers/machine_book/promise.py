"""The promises of one agent: slices of this machine that it has promised to kernels, and the form of their file.

A promise ends when its agent takes it out of the file, or when neither the agent nor one of the promise's keepers
lives. So it outlives an agent that was killed, as the kernel does, and a reboot ends it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile, open_checked
from roost.launchers.daemon.json_text import UnfitText, parse_json
from roost.launchers.daemon.process import current_start_time, is_of_this_boot, is_running
from roost.placement.model.json_codec import WireError, decode, encode

NAME = re.compile(r"roost-\d{1,10}-[0-9a-f]{32}\.json")
"""The name of an agent's file, with the uid of its user."""
_MOST_BYTES = 4 << 20
"""The greatest size of an agent's file: room for 10,000 promises."""
_LAUNCH_S = 120.0
"""How long a promise outlives an agent that died during the launch of its kernel, whose process has no name yet."""
_CONTAINER = re.compile(r"[0-9a-f]{12,64}")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_GROUPS_OF_CONTAINERS = (
    "*/*{}*",  # docker/ID or system.slice/docker-ID.scope
    "user.slice/*/*/*/*{}*",  # of an engine without root
    "memory/*/*{}*",  # the same in version 1 of control groups
    "memory/user.slice/*/*/*/*{}*",
)
"""Where the engine of a container that runs has its control group, below `_CONTROL_GROUPS`. All users see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """A process, by its pid and its `process.start_time`, or a container, by its id. It keeps a promise alive."""

    pid: int = 0
    started_at: float = 0.0
    container: str = ""

    def lives(self) -> bool:
        """True if the process or the container runs."""
        return _has_group(self.container) if self.container else _lives(self.pid, self.started_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A slice that is promised to one kernel."""

    keepers: tuple[Keeper, ...] = ()
    """The processes of the kernel, or its container."""
    launching_since: float = 0.0
    """If a launch is under way: its `process.current_start_time`. The kernel's process may not be named yet."""
    cpus: float = 0.0
    memory_bytes: int = 0
    devices: Mapping[str, float] = field(default_factory=dict)
    """The share of each device, more than 0 and at most 1, by the device's id."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """The GPU of each of these devices that is a slice of a GPU."""
    since: float = 0.0
    """When it was made (Unix time), for people."""

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.memory_bytes < 0:
            raise ValueError("an amount is negative")
        if not all(0 < share <= 1 for share in self.devices.values()):
            raise ValueError("a share of a device is not between 0 and 1")

    def lives(self) -> bool:
        """True if the promise holds although its agent has ended."""
        is_launching = (
            self.launching_since > 0 and 0 <= current_start_time() - self.launching_since <= _LAUNCH_S
        )
        return is_launching or any(keeper.lives() for keeper in self.keepers)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFile:
    """The promises of an agent. Later versions of roost may add fields, but these stay: every roost can read them."""

    agent: Keeper
    promises: Mapping[str, Promise]
    """By `name_promise` of the lease."""

    def living(self) -> list[Promise]:
        """Return the promises that count now."""
        if self.agent.lives():
            return list(self.promises.values())
        return [promise for promise in self.promises.values() if promise.lives()]


@dataclass(frozen=True, slots=True)
class Found:
    """A file in the folder of the book: its owner's uid, its content, and why it has none, as a sentence."""

    uid: int
    file: AgentFile | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A promise in the book that counts, with the uid of its user."""

    uid: int
    promise: Promise


def read_folder(folder: Path, *, but: str = "") -> dict[str, Found]:
    """Return what the agents' files in the folder of the book have, by their names, without `but`. Raises `OSError`."""
    found: dict[str, Found] = {}
    for name in filter(NAME.fullmatch, {*os.listdir(folder)} - {but}):
        with contextlib.suppress(FileNotFoundError):  # it has been removed meanwhile
            read = read_file(folder / name)
            if read.file is not None and not read.file.agent.lives():
                # The agent may have named a kernel after this reading, and have ended then.
                read = read_file(folder / name)
            found[name] = read
    return found


def read_file(path: Path) -> Found:
    """Return what an agent's file has. Raises `FileNotFoundError`."""
    uid = path.lstat().st_uid
    try:
        with open(open_checked(path, most_bytes=_MOST_BYTES), "rb") as file:
            return Found(uid, _parse(file.read(_MOST_BYTES)))
    except UnfitFile as problem:
        return Found(uid, None, str(problem))
    except (UnfitText, WireError) as problem:
        return Found(uid, None, f"{path} has no promises that can be read: {problem}")


@functools.lru_cache(maxsize=128)
def _parse(content: bytes) -> AgentFile:
    """Return the promises in a file. Most files are as they were when they were read last."""
    return decode(AgentFile, parse_json(content), ignore_unknown=True)


def encode_promise(promise: Promise) -> str:
    """Return a promise as it stands in a file."""
    return json.dumps(encode(promise))


def write_file(path: Path, agent: Keeper, promises: Mapping[str, str]) -> None:
    """Write an agent's file, which all users may read, as a whole or not at all. Raises `OSError`.

    `promises` has the results of `encode_promise`, by `name_promise`: to encode hundreds takes milliseconds.
    """
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask is
            texts = ", ".join(f'"{name}": {text}' for name, text in promises.items())
            file.write(f'{{"agent": {json.dumps(encode(agent))}, "promises": {{{texts}}}}}\n'.encode())
        os.replace(temporary, path)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(problem, OSError):
            raise type(problem)(problem.errno, problem.strerror, str(path.parent)) from None
        raise


def list_living(found: Iterable[Found]) -> list[Held]:
    """Return the promises that count."""
    return [Held(each.uid, promise) for each in found if each.file for promise in each.file.living()]


def name_file(uid: int, owner: str) -> str:
    """Return the name of the file of the agent that `owner` names."""
    return f"roost-{uid}-{_digest(owner)[:32]}.json"


def name_promise(lease_id: str) -> str:
    """Return the name of a lease in its agent's file, which all users may read: it says nothing about the kernel."""
    return _digest(lease_id)[:16]


def _digest(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()


def _lives(pid: int, started_at: float) -> bool:
    """True if a process of any user runs. A process that `hidepid` hides from this user counts as running."""
    if is_running(pid, started_at):
        return True
    if pid <= 0 or os.path.exists(f"/proc/{pid}") or not is_of_this_boot(started_at):
        return False  # another process has the pid, or a zombie
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False  # it has begun meanwhile


def _has_group(container: str) -> bool:
    """True if the container with this id runs: its engine has a control group for it."""
    if not _CONTAINER.fullmatch(container):
        return False
    return any(next(_CONTROL_GROUPS.glob(each.format(container)), None) for each in _GROUPS_OF_CONTAINERS)
