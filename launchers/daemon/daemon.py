"""Processes of which there is one per folder: started by whoever needs them first, found by all others.

A daemon's private folder has `lock` (held for its whole life: who can take it knows that none lives),
`start.lock` (held by who is starting one), `ready.json` (what it announced), `log`, and the `log.old` of the one
before. One that never came up, and said why, leaves no folder. Sockets and pids left behind by one that was killed
mean nothing, since only the lock says that a daemon lives. Locks are given back before their file is closed: a child
that another thread forked in between has the same open file, and would keep them.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .private_files import FolderError, private_folder, read_json, runtime_dir, tail, write_private_json
from .process import start_time

__all__ = [
    "AlreadyRunning",
    "DaemonError",
    "Held",
    "announce_failure",
    "announced",
    "ensure",
    "hold",
    "is_alive",
    "runtime_dir",
]

_READY_FD = "ROOST_READY_FD"
_LOOK_AGAIN_S = 0.02
_LOCK_RETRY_S = 0.01
_PROBE_S = 0.25
"""Whoever asks `is_alive` holds the lock for microseconds, and must not keep a daemon from starting."""
# The applications's own: a daemon outlives it, and no kernel should find these in a parent's environment.
_NOT_INHERITED = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "JPY_API_TOKEN", "JUPYTER_TOKEN", "PYTHONSTARTUP")


class DaemonError(Exception):
    """A daemon could not be started or found; the text is one sentence.

    `kind` is the short word that the daemon gave for its own failure (`announce_failure`), else empty.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class AlreadyRunning(DaemonError):
    """Another daemon holds this folder."""


def ensure(
    folder: Path, command: Sequence[str], *, env: Mapping[str, str] | None = None, deadline_s: float
) -> dict[str, Any]:
    """What the living daemon of `folder` announced, after starting `command` if none lives.

    Blocks up to `deadline_s` while another process is starting one, and as long again for its own start: call it off
    the event loop. Raises `DaemonError`. The daemon is detached: neither a child of this process nor in its session.
    """
    try:
        with _locked(folder / "start.lock", deadline_s):
            deadline = time.monotonic() + deadline_s
            while is_alive(folder):
                if (said := announced(folder)) is not None:
                    return said
                # Started by hand and not ready yet, or on its way out: there is no event for either.
                if time.monotonic() > deadline:
                    raise DaemonError(
                        f"the process that holds {folder} does not say that it is ready; see its log"
                    )
                time.sleep(_LOOK_AGAIN_S)
            try:
                return _start(folder, command, dict(os.environ if env is None else env), deadline_s)
            except DaemonError as problem:
                if problem.kind and not is_alive(folder):
                    _forget(folder)
                raise
    except FolderError as problem:
        raise DaemonError(str(problem)) from None
    except OSError as problem:
        raise DaemonError(f"cannot start {command[0]} in {folder}: {problem.strerror}") from None


def _forget(folder: Path) -> None:
    """Remove a folder in which no daemon has left anything but what starting one makes."""
    traces = ("log.old", "log", "lock", "start.lock")  # the last one last: it keeps others from starting one
    with suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= set(traces):
            for name in traces:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def is_alive(folder: Path) -> bool:
    """Whether a daemon holds this folder now."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask are no daemon
    except BlockingIOError:
        return True
    finally:
        _unlock(descriptor)
    return False


def announced(folder: Path) -> dict[str, Any] | None:
    """What the living daemon of this folder has announced; None where none lives, or is not ready."""
    said = read_json(folder / "ready.json") if is_alive(folder) else None
    return said if isinstance(said, dict) else None


def _start(folder: Path, command: Sequence[str], env: dict[str, str], deadline_s: float) -> dict[str, Any]:
    for name in _NOT_INHERITED:
        env.pop(name, None)
    reader, writer = os.pipe()
    try:
        with suppress(FileNotFoundError):
            os.replace(folder / "log", folder / "log.old")  # why the one before ended may be in there
        log = os.open(
            folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            env[_READY_FD] = str(writer)
            # The shell goes at once, so that the daemon is init's child and never a zombie of the application.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writer],
                start_new_session=True,
                check=True,
                timeout=deadline_s,
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as problem:
            raise DaemonError(f"cannot start {command[0]}: {problem}") from None
        finally:
            os.close(log)
            os.close(writer)
        return _await_announcement(reader, folder, command, deadline_s)
    finally:
        os.close(reader)


def _await_announcement(
    reader: int, folder: Path, command: Sequence[str], deadline_s: float
) -> dict[str, Any]:
    content = b""
    deadline = time.monotonic() + deadline_s
    while not content.endswith(b"\n"):
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise DaemonError(f"{_name(command)} was not ready within {deadline_s:g} s; see {folder / 'log'}")
        chunk = os.read(reader, 65_536)
        if not chunk:
            last = tail(folder / "log", 2_000).strip().rpartition("\n")[2]
            said = f"{last} (all of it in {folder / 'log'})" if last else "it wrote nothing to its log"
            raise DaemonError(f"{_name(command)} ended while it was starting: {said}")
        content += chunk
    said = json.loads(content)
    assert isinstance(said, dict)
    if "failure" in said:
        raise DaemonError(said["failure"]["message"], said["failure"]["kind"])
    return said


def _name(command: Sequence[str]) -> str:
    return command[command.index("-m") + 1] if "-m" in command[:-1] else command[0]


class Held:
    """A daemon's hold on its folder; `announce` tells whoever waits that it is ready to serve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def announce(self, info: Mapping[str, Any]) -> None:
        """Write `ready.json` and wake the starter. Adds `pid` and `process_started_at`."""
        said = {**info, "pid": os.getpid(), "process_started_at": start_time(os.getpid())}
        write_private_json(self.folder / "ready.json", said)
        _tell_starter(said)


def announce_failure(kind: str, message: str) -> None:
    """In a daemon that cannot serve: its starter raises `DaemonError` with this sentence and kind."""
    _tell_starter({"failure": {"kind": kind, "message": message}})


def _tell_starter(said: Mapping[str, Any]) -> None:
    descriptor = os.environ.pop(_READY_FD, None)
    if descriptor is not None:
        os.write(int(descriptor), json.dumps(said).encode() + b"\n")
        os.close(int(descriptor))


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether that open lock is still the one at `path`: where the folder was removed, a successor made another."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def hold(folder: Path) -> Iterator[Held]:
    """Be the daemon of `folder` for as long as the block runs; raises `AlreadyRunning`."""
    private_folder(folder)
    # A background process of a shell is born with these ignored, and its children would be as well.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(descriptor, _PROBE_S):
            raise AlreadyRunning(f"another process already serves {folder}")
        (folder / "ready.json").unlink(missing_ok=True)
        yield Held(folder)
        if _is_at(folder / "lock", descriptor):
            (folder / "ready.json").unlink(missing_ok=True)
    finally:
        _unlock(descriptor)


@contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold the lock at `path`, in a private folder that is made if need be, also again where it was removed."""
    deadline = time.monotonic() + deadline_s
    while True:
        private_folder(path.parent)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            if not _lock(descriptor, deadline - time.monotonic()):
                raise DaemonError(f"another process has held {path} for {deadline_s:g} s; try again")
            if _is_at(path, descriptor):
                yield
                return
        finally:
            _unlock(descriptor)


def _lock(descriptor: int, deadline_s: float) -> bool:
    """Take the lock; False when another has it all the time. It looks again and again: flock has no deadline."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(_LOCK_RETRY_S)


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
