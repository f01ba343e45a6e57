"""One promise: a slice of this machine that an agent has promised to a kernel, and the form of its file.

A promise ends when its agent removes the file, or when neither the agent nor a process that the promise names lives.
So it outlives an agent that was killed, as the kernel does, and a reboot ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile, open_checked
from roost.launchers.daemon.json_text import UnfitText, parse_json
from roost.launchers.daemon.process import is_same_start, start_time
from roost.placement.model.json_codec import WireError, decode, encode

VERSION = 1
"""The version of the form. Later ones may add fields, but these stay, so that every roost can read them."""
MOST_BYTES = 16 << 10
"""The greatest size of a promise's file."""
NAME = re.compile(r"roost-(\d{1,10})-[0-9a-f]{32}\.json")
"""The name of a promise's file, with the uid of its user."""
_LAUNCH_S = 120.0
"""A kernel whose agent died during its launch has begun at most this long after the beginning of the launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProcess:
    """A process, with its start time from `process.start_time`."""

    pid: int
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A promised slice. Its user is the owner of the file.

    A newer roost may mean more by it than this one can read. Its devices then count as wholly promised.
    """

    name: str
    """The name of its file, so that a link with another name does not count."""
    agent: NamedProcess
    processes: tuple[NamedProcess, ...] = ()
    """The processes of the kernel."""
    launching_since: float = 0.0
    """If a launch is under way: a start time. The kernel's process begins after it, and may not be named yet."""
    pid_namespace: str = ""
    """The namespace in which the pids count."""
    cpus: float = 0.0
    memory_bytes: int = 0
    devices: Mapping[str, float] = field(default_factory=dict)
    """The share of each device, more than 0 and at most 1, by the device's id."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """The GPU of each of these devices that is a slice of a GPU."""
    since: float = 0.0
    """When it was made (Unix time), for people."""
    version: int = VERSION

    @property
    def is_newer(self) -> bool:
        """True if a newer roost has made it."""
        return self.version > VERSION

    def find_impossible(self) -> str:
        """Return what cannot be in the amounts, as a predicate; empty if nothing."""
        if self.cpus < 0 or self.memory_bytes < 0:
            return "has negative amounts"
        if not all(0 < share <= 1 for share in self.devices.values()):
            return "has a share of a device that is not between 0 and 1"
        return ""


def read_promise(path: Path) -> tuple[int, Promise]:
    """Return the uid of a promise's user, and the promise. Raises `UnfitFile`, and `FileNotFoundError`."""
    with open(open_checked(path, most_bytes=MOST_BYTES), "rb") as file:
        uid = os.fstat(file.fileno()).st_uid
        content = file.read(MOST_BYTES + 1)
    named = NAME.fullmatch(path.name)
    if named is None or int(named[1]) != uid:
        raise UnfitFile(path, f"belongs to uid {uid}, not to the user in its name")
    if len(content) > MOST_BYTES:
        raise UnfitFile(path, f"has more than {MOST_BYTES >> 10} KiB")
    try:
        promise = decode(Promise, parse_json(content), ignore_unknown=True)
    except (UnfitText, WireError) as problem:
        raise UnfitFile(path, f"has no promise that can be read: {problem}") from None
    if promise.name != path.name:
        raise UnfitFile(path, "has a promise that belongs into another file")
    if strange := promise.find_impossible():
        raise UnfitFile(path, strange)
    if promise.is_newer:
        promise = replace(promise, devices=dict.fromkeys(promise.devices, 1.0))
    return uid, promise


def write_promise(folder: Path, promise: Promise) -> None:
    """Write a promise's file, which all users may read, as a whole or not at all. Raises `OSError`."""
    temporary = folder / name_unfinished(promise.name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask is
            file.write(json.dumps(encode(promise)).encode())
        os.replace(temporary, folder / promise.name)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise type(problem)(problem.errno, problem.strerror, str(folder)) from None
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def name_file(uid: int, owner: str, lease_id: str, number: int = 0) -> str:
    """Return the name of the file for a lease of the agent that `owner` names. Files of one agent begin alike.

    Each `number` gives another name: a stranger may have taken the first one.
    """
    return f"{name_files(uid, owner)}{_digest(f'{number} {lease_id}')[:20]}.json"


def name_unfinished(name: str) -> str:
    """Return a name for a promise's file that is being written. Nobody can guess it, and take it before."""
    return f".{name}.{os.getpid()}-{secrets.token_hex(8)}.tmp"


def name_files(uid: int, owner: str) -> str:
    """Return the beginning of the names of all files of the agent that `owner` names."""
    return f"roost-{uid}-{_digest(owner)[:12]}"


def _digest(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()


# Who lives


def lives(promise: Promise, uid: int, known: dict[NamedProcess, bool]) -> bool:
    """True if the agent of a user's promise lives, or a process of its kernel. The pids must be of this namespace.

    Each process that was looked for is added to `known`, with True if it lives.
    """
    for process in (promise.agent, *promise.processes):
        if process not in known:
            known[process] = _lives(process, uid)
        if known[process]:
            return True
    return promise.launching_since > 0 and any(_find_launched(uid, promise.launching_since))


def find_living(promise: Promise, uid: int) -> Iterator[NamedProcess]:
    """Yield the processes that keep this user's promise alive, its agent first."""
    return (process for process in (promise.agent, *promise.processes) if _lives(process, uid))


def _lives(process: NamedProcess, uid: int) -> bool:
    if process.pid <= 0:
        return False
    started_at = start_time(process.pid)
    if started_at == 0.0:
        return _is_hidden(process.pid)
    return is_same_start(started_at, process.started_at) and _uid_of(process.pid) in (uid, None)


def _is_hidden(pid: int) -> bool:
    """True if there is a process that this user must not see (`hidepid` in proc(5)). It counts as alive."""
    if os.path.exists(f"/proc/{pid}"):
        return False  # a zombie
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not has_ended(pid)
    except (OSError, OverflowError):
        return False
    return False  # it has begun meanwhile


def has_ended(pid: int) -> bool:
    """True if a process has ended, even if its parent has not noticed. Any user may ask this of any process."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # there are no pidfds here, or no descriptors
        return False
    try:
        ends = select.poll()
        ends.register(descriptor, select.POLLIN)
        return bool(ends.poll(0))
    finally:
        os.close(descriptor)


def _uid_of(pid: int) -> int | None:
    """Return the real uid of a process; None if that cannot be read."""
    # The owner of /proc/<pid> is root for a process that must not be dumped.
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return None
    return None


def _find_launched(uid: int, since: float) -> Iterator[int]:
    """Yield the processes that a launch may have begun: leaders of sessions of this user from the time after it."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            pid = int(name)
            if os.stat(f"/proc/{name}").st_uid == uid and os.getsid(pid) == pid:
                began = start_time(pid) - since
                if -0.02 <= began <= _LAUNCH_S:
                    yield pid


def find_pid_namespace() -> str:
    """Return the namespace of this process's pids; empty where there are none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def without_dead(promise: Promise, uid: int) -> Promise:
    """Return the promise without the processes that have ended."""
    alive = tuple(process for process in promise.processes if _lives(process, uid))
    return replace(promise, processes=alive)
