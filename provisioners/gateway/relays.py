"""Kernels that run as the person who asked: by a relay of that person, which sudo starts.

For each person and backend there is one client, whose service runs as that person. `scheduler/client/relay.py` is the
other side: what comes through it is a stranger's input.
"""

from __future__ import annotations

import grp
import hashlib
import logging
import os
import pwd
import select
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from roost.scheduler.client import relay
from roost.scheduler.client.client import Client, user_folder
from roost.scheduler.errors import BackendUnavailable, ConfigError

_FOLDER = "relays"
"""The folder of the sockets in the runtime folder. The path of a socket must be short."""
_BACKLOG = 64
_START_S = 20.0
"""How long sudo and the relay may take until the relay is ready."""
_SAY_S = 2.0
"""How long it may take after that to say why not, and to end."""
_MOST_CHARACTERS, _MOST_LINES = 300, 100
_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ")
"""The gateway's variables that sudo gets. It drops most of them, but would pass on a Kerberos ticket."""
_SENTENCES = (
    ("a password is required", "`sudo` has no rule for this: `roost gateway sudoers` prints it"),
    ("not allowed", "`sudo` does not allow it for this person: see whether she is in the group of the rule"),
    ("unknown user", "she has no account on this machine"),
    ("a terminal is required", "`sudo` wants a terminal: set !requiretty for this command"),
)
"""What sudo says, and what it means here."""


class Relays:
    """The clients of a gateway's people, by person and backend."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._clients: dict[tuple[str, str], Client] = {}
        self._lock = threading.Lock()

    def find_client(self, person: str, backend: str) -> Client:
        """Return the client of a person's own service. Its first call starts the relay."""
        with self._lock:
            key = person, backend
            if key not in self._clients:
                way = _Way(person, backend, self._log)
                self._clients[key] = Client(backend, reach=way.reach)
            return self._clients[key]


class _Way:
    """The way to a person's own service: a socket, and the relay that listens on it."""

    def __init__(self, person: str, backend: str, log: logging.Logger) -> None:
        self._person = person
        self._backend = backend
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        name = hashlib.sha256(f"{backend} {person}".encode()).hexdigest()[:12]
        self._path = user_folder(_FOLDER) / name

    def reach(self) -> str:
        """Return the endpoint of the relay, and start it if it does not run. Raises `RoostError`. Blocks."""
        if self._process is None or self._process.poll() is not None:
            check_person(self._person)
            self._process = self._start()
        return f"ipc://{self._path}"

    def _start(self) -> subprocess.Popen[bytes]:
        with suppress(FileNotFoundError):
            self._path.unlink()
        command = ["sudo", "-n", "-H", "-u", self._person, "--", *relay_command(), self._backend]
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(_BACKLOG)
            try:
                process = subprocess.Popen(
                    command, stdin=listener.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    cwd="/", env=environment, umask=0, start_new_session=True,
                )  # fmt: skip
            except OSError as problem:
                raise ConfigError(f"`sudo` cannot be run ({problem.strerror}): install it.") from None
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout as answer:
            is_ready = _read_some(answer, _START_S) == relay.READY
        if is_ready:
            threading.Thread(target=self._log_all, args=(process,), daemon=True, name="roost-relay").start()
            return process
        with process.stderr as errors:
            said = _read_some(errors, _SAY_S).decode(errors="replace")
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SAY_S)
        raise BackendUnavailable(f"No kernel can start as {self._person}: {explain(said)}.")

    def _log_all(self, process: subprocess.Popen[bytes]) -> None:
        """Log the first lines that a relay says, up to a line's greatest length, and wait for its end."""
        assert process.stderr is not None
        with process.stderr as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_MOST_CHARACTERS), b"")):
                if number < _MOST_LINES:
                    text = line.decode(errors="replace").rstrip()
                    self._log.warning("roost: the relay of %s says %a", self._person, text)
        process.wait()


def _read_some(file: IO[bytes], timeout_s: float) -> bytes:
    """Return what can be read from a pipe within this time; nothing at its end or if nothing comes."""
    ready = select.poll()  # `select.select` knows no file descriptor above 1,023
    ready.register(file, select.POLLIN)
    return os.read(file.fileno(), 4_096) if ready.poll(timeout_s * 1_000) else b""


def relay_command() -> list[str]:
    """Return the command of a relay, without the backend: the one that sudo's rule allows."""
    return [sys.executable, "-I", "-m", relay.__name__]


def check_person(person: str) -> None:
    """Raise `ConfigError` unless this is exactly the name of a person's account on this machine."""
    try:
        account = pwd.getpwnam(person)
    except KeyError:
        raise ConfigError(f"{person} has no account on the gateway's machine: ask the operator.") from None
    if account.pw_name != person or account.pw_uid < relay.read_first_person():
        raise ConfigError(f"{person} is no account of a person on the gateway's machine: ask the operator.")


def explain(said: str) -> str:
    """Return what sudo or the relay has said, as a clause."""
    for words, clause in _SENTENCES:
        if words in said:
            return clause
    last = next(iter(reversed(said.strip().splitlines())), "").removeprefix("roost-relay: ").rstrip(".")
    shown = last[:_MOST_CHARACTERS]
    return (shown if shown.isprintable() else ascii(shown)[1:-1]) or "the relay has ended without a word"


def write_rule(account: str, group: str, backends: Sequence[str]) -> str:
    """Return the line for sudoers: `account` may start relays as the members of `group`. Raises `ConfigError`.

    It is given only if nobody but root can change the relay or the Python that runs it.
    """
    try:
        grp.getgrnam(group)
    except KeyError:
        raise ConfigError(f"There is no group {group!a:.80}: make it, and put the people into it.") from None
    for path in list_trusted():
        status = path.lstat()
        if status.st_uid != 0 or (not path.is_symlink() and stat.S_IMODE(status.st_mode) & 0o022):
            raise ConfigError(
                f"{path} can be changed by others than root, who could then run anything as these people: "
                "install roost where only root writes, such as /opt/roost."
            )
    words = " ".join(relay_command())
    commands = ", ".join(f"{words} {backend}" for backend in backends)
    return f"{account} ALL=(%{group}) NOPASSWD: {commands}"


def list_trusted() -> Iterator[Path]:
    """Yield each file and folder that decides what a relay does: of its Python and of roost."""
    files = [Path(sys.executable), Path(sys.executable).resolve(), Path(sys.prefix), Path(sys.base_prefix)]
    seen: set[Path] = set()
    for file in (*files, Path(relay.__file__), Path(relay.__file__).resolve()):
        for path in (file, *file.parents):
            if path not in seen:
                seen.add(path)
                yield path
