"""Daemons: background processes, at most one per folder. The first caller starts a daemon, and later callers find it.

While a daemon runs, it holds the file lock `lock` in its private folder. Only this lock shows that the daemon is
running. The process that starts the daemon holds `start.lock` until the daemon is ready. `ready.json` has the daemon's
announcement: a JSON object, for example with its address. `log.old` is the log of the previous daemon.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .file_input import MOST_RECORD_BYTES
from .open_files import original_limit, raise_limit
from .private_files import (
    FolderError,
    is_own_file,
    private_folder,
    read_json,
    remove_unfinished,
    shorten,
    tail,
    write_private_json,
)
from .process import start_time

log = logging.getLogger(__name__)

_READY_FD = "ROOST_READY_FD"
_LOOK_AT_FOLDER_S = 2.0
_MOST_LOG_BYTES = 8 << 20
_LOOK_AGAIN_S = 0.02
_LOCK_RETRY_S = 0.01
_PROBE_S = 0.25
"""How long a daemon waits for its lock, because each call of `is_alive` holds that lock for microseconds."""
_HIGH_DESCRIPTOR = 255
_SHELL = 'ulimit -S -n "$0"; "$@" &'
# Variables of the application. A daemon outlives the application, and passes its environment on to kernels.
_NOT_INHERITED = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "JPY_API_TOKEN", "JUPYTER_TOKEN", "PYTHONSTARTUP")


class DaemonError(Exception):
    """A daemon could not be started or found.

    `kind` is the `kind` that the daemon passed to `announce_failure`, or empty.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class EndedSilently(DaemonError):
    """A daemon has ended while it was starting, without a word in its log: somebody has killed it."""


class NotPrivate(DaemonError):
    """The folder of a daemon is not private, or cannot be made. The text says what to do."""


class AlreadyRunning(DaemonError):
    """Another daemon is already running for the same folder."""


def ensure(
    folder: Path, command: Sequence[str], *, env: Mapping[str, str] | None = None, deadline_s: float
) -> dict[str, Any]:
    """Return the announcement of the daemon of `folder`. Start the daemon by `command` if it is not running.

    The call waits at most `deadline_s` for each step: the start lock, a daemon that another process has started, and
    its own start. Raises `DaemonError`. The daemon is neither a child of this process nor in its session.
    """
    try:
        with _locked(folder / "start.lock", deadline_s):
            deadline = time.monotonic() + deadline_s
            while is_alive(folder):
                if (announcement := read_announcement(folder)) is not None:
                    return announcement
                # The daemon is not ready yet, or it is about to end. Neither state has an event to wait for.
                if time.monotonic() > deadline:
                    problem = f"the process that holds {folder} was not ready within {deadline_s:g} s"
                    raise DaemonError(f"{problem}; see its log")
                time.sleep(_LOOK_AGAIN_S)
            try:
                return _start(folder, command, os.environ if env is None else env, deadline_s)
            except DaemonError as refusal:
                if refusal.kind and not is_alive(folder):
                    _forget(folder)
                raise
    except FolderError as error:
        raise NotPrivate(str(error)) from None
    except OSError as error:
        raise DaemonError(f"cannot start {command[0]} in {folder}: {error}") from None


def _forget(folder: Path) -> None:
    """Remove the folder if it contains only the logs and locks that every start creates."""
    traces = ("log.old", "log", "lock", "start.lock")  # start.lock last: without it, others may start
    with suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= set(traces):
            for name in traces:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def is_alive(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            raise
        return False  # there is no lock that a daemon could hold
    try:
        # A shared lock, so that two callers of this function do not take each other for a daemon.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        _unlock(descriptor)
    return False


def read_announcement(folder: Path) -> dict[str, Any] | None:
    """Return the announcement of the daemon of this folder, or None if it is not running or not ready.

    A `ready.json` that belongs to another user is ignored: it could name a socket of that user.
    """
    return _read_ready(folder) if is_alive(folder) else None


def _read_ready(folder: Path) -> dict[str, Any] | None:
    """Return what `announce` has written in this folder; None if that is missing or damaged."""
    file = folder / "ready.json"
    found = read_json(file, most_bytes=MOST_RECORD_BYTES) if is_own_file(file) else None
    return found if isinstance(found, dict) and type(found.get("pid")) is int else None


def _start(folder: Path, command: Sequence[str], env: Mapping[str, str], deadline_s: float) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        os.replace(folder / "log", folder / "log.old")  # it may say why the last daemon ended
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    reader, writer = os.pipe()
    open_files = original_limit()[0]
    limit = "unlimited" if open_files == resource.RLIM_INFINITY else str(open_files)
    inherited = {name: value for name, value in env.items() if name not in _NOT_INHERITED}
    with open(reader, "rb"):
        with open(writer, "wb"), open(os.open(folder / "log", flags, 0o600), "wb") as output:
            try:
                # The shell exits at once. The daemon becomes init's child, and never a zombie of the application.
                subprocess.run(
                    ["/bin/sh", "-c", _SHELL, limit, *command],
                    cwd=folder,
                    env={**inherited, _READY_FD: str(writer)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[writer],
                    start_new_session=True,
                    check=True,
                    timeout=deadline_s,
                )
            except subprocess.SubprocessError as problem:
                raise DaemonError(f"cannot start {command[0]}: {problem}") from None
        return _await_announcement(reader, folder, command, deadline_s)


def _await_announcement(
    reader: int, folder: Path, command: Sequence[str], deadline_s: float
) -> dict[str, Any]:
    content = b""
    deadline = time.monotonic() + deadline_s
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while not content.endswith(b"\n"):
        if not poll.poll(1_000 * max(0.0, deadline - time.monotonic())):
            raise DaemonError(f"{_name(command)} was not ready within {deadline_s:g} s; see {folder / 'log'}")
        chunk = os.read(reader, 65_536)
        if not chunk:
            what = f"{_name(command)} ended while it was starting"
            if last := tail(folder / "log", 2_000).strip().rpartition("\n")[2]:
                raise DaemonError(f"{what}: {last} (all of it in {folder / 'log'})")
            if not os.statvfs(folder).f_bavail:
                raise DaemonError(f"{what}: no space is left for {folder}: free some, then try again")
            raise EndedSilently(f"{what}: it wrote nothing to its log")
        content += chunk
    announcement = json.loads(content)
    assert isinstance(announcement, dict)
    if "failure" in announcement:
        raise DaemonError(announcement["failure"]["message"], announcement["failure"]["kind"])
    return announcement


def _name(command: Sequence[str]) -> str:
    return command[command.index("-m") + 1] if "-m" in command[:-1] else command[0]


def announce(folder: Path, info: Mapping[str, Any]) -> None:
    """Announce that this daemon is ready: write `info`, pid and start time to `ready.json`, and wake `ensure`."""
    announcement = {**info, "pid": os.getpid(), "process_started_at": start_time(os.getpid())}
    write_private_json(folder / "ready.json", announcement)
    _report_to_starter(announcement)


def announce_failure(kind: str, message: str) -> None:
    """Report why this daemon cannot serve: `ensure` raises `DaemonError` with this kind and message."""
    _report_to_starter({"failure": {"kind": kind, "message": message}})


def _report_to_starter(announcement: Mapping[str, Any]) -> None:
    descriptor = os.environ.pop(_READY_FD, None)
    if descriptor is not None:
        with suppress(BrokenPipeError):  # the starter has ended: others find `ready.json`
            os.write(int(descriptor), json.dumps(announcement).encode() + b"\n")
        os.close(int(descriptor))


def name_owner(folder: Path) -> str:
    """Return the name that a folder's daemons have outside it. They hold the folder's lock.

    After the folder was deleted and made again, the name is another one. The earlier daemon may still live.
    """
    return f"{folder} {(folder / 'lock').stat().st_ino}"


def _is_at(path: Path, descriptor: int) -> bool:
    """True if the open file `descriptor` is still the file at `path`. False if that file was deleted or replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class Hold:
    """The lock that a daemon holds on its folder while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor = self._lock()

    @property
    def is_intact(self) -> bool:
        """True if the folder still has this daemon's lock. Programs that clean /tmp may have deleted the folder."""
        return _is_at(self.folder / "lock", self._descriptor)

    async def watch(self, *, is_needed: Callable[[], bool], leave: Callable[[], None]) -> None:
        """Shorten a long log every two seconds. Once the folder was deleted, call `leave` when `is_needed()` is False.

        Until then this process serves what it has, for those who are connected. It must begin nothing that the next
        process would have to find in the folder.
        """
        was_intact = True
        while True:
            await asyncio.sleep(_LOOK_AT_FOLDER_S)
            with suppress(OSError):
                shorten(self.folder / "log", over_bytes=_MOST_LOG_BYTES, keep_bytes=_MOST_LOG_BYTES // 8)
            if self.is_intact:
                continue
            if was_intact:
                log.error(
                    "%s was deleted: no kernel starts here, and this process leaves after the last",
                    self.folder,
                )
            was_intact = False
            if not is_needed():
                leave()
                return

    def close(self) -> None:
        _unlock(self._descriptor)

    def _lock(self) -> int:
        private_folder(self.folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = _move_up(os.open(self.folder / "lock", flags, 0o600))
        if not _lock(descriptor, _PROBE_S):
            os.close(descriptor)
            raise AlreadyRunning(f"another process already serves {self.folder}")
        return descriptor


@contextmanager
def hold(folder: Path) -> Iterator[Hold]:
    """Make this process the daemon of `folder` while the block runs: hold the folder's lock.

    Raises `AlreadyRunning` if another daemon holds it.
    """
    raise_limit()
    # A shell starts background processes with these signals ignored, and kernels would inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    held = Hold(folder)
    try:
        (folder / "ready.json").unlink(missing_ok=True)
        remove_unfinished(folder)
        yield held
        if held.is_intact:
            (folder / "ready.json").unlink(missing_ok=True)
    finally:
        held.close()


def _move_up(descriptor: int) -> int:
    """Move a descriptor to a number from 255 on, so that Linux enlarges the descriptor table now. Return that number.

    Later, in a process with threads, Linux would need 10 to 20 ms for that (`expand_fdtable`). A child inherits the
    table's size, also through exec. If the limit of open files is lower than 256, the descriptor stays.
    """
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH_DESCRIPTOR)
    except OSError:  # the limit of open files is lower
        return descriptor
    os.close(descriptor)
    return moved


@contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold the lock at `path` while the block runs. Raise `DaemonError` if it is not free within `deadline_s`.

    The lock's private folder is created if it does not exist, and again if `_forget` removes it meanwhile.
    """
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
    """Take the lock on an open file. Return False if the lock is not free within `deadline_s`.

    Polls, because flock has no deadline.
    """
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
    # Unlock before closing: a child that another thread has just forked has the same open file, and keeps the lock.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
