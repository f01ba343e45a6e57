"""The name of a Jupyter Server, and its files for the next server of that name.

$XDG_STATE_HOME/roost/servers/<digest of the name>/
    lock            held by the server that has the name
    sessions.db     Jupyter Server's sessions: which notebook uses which kernel
    kernels.json    facts about its kernels, for the time in which a scheduler is out of reach
    held.json       the headers of cells that the server holds for waiting kernels
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.scheduler.client.service_folder import find_world
from roost.scheduler.client.state_folder import (
    UnfitFile,
    open_checked,
    put_aside,
    remove_unfinished,
    state_folder,
    take_json,
    write_private_json,
)

log = logging.getLogger(__name__)

_LONGEST_ID = 256
_SQLITE = b"SQLite format 3\0"


def choose_server_name(serverapp: Any) -> str:
    """Return a name that stays the same when this server restarts.

    It is JupyterHub's service prefix, or a digest of base URL, root folder and port.
    """
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "")
    if prefix:
        return prefix
    root = os.path.realpath(serverapp.root_dir)
    place = f"{serverapp.base_url} {root} {serverapp.sock or serverapp.port}"
    return hashlib.sha256(place.encode()).hexdigest()[:12]


class ServerState:
    """The folder of one server name.

    `has_lock` is False if another server has the name, if the name is empty, if the folder cannot be written,
    or after `close`. With `waits`, this waits for the end of the other server of that name.
    """

    def __init__(self, name: str, *, waits: bool = False) -> None:
        self.name = name
        self._waits = waits
        self.problem = ""
        self._world = ""
        self._lock: int | None = None
        self._kernels: dict[str, dict[str, str]] = {}
        self._held: dict[str, list[dict[str, Any]]] = {}
        self.lost_cells: dict[str, list[dict[str, Any]]] = {}
        """The headers of cells that an earlier server held and that will never run, by kernel id."""
        if not name:  # a server that adopts nothing
            return
        try:
            self._open()
        except BlockingIOError:
            self.problem = f"another server named {name!r} runs; give this one a c.RoostExtension.server_name"
        except OSError as problem:
            self.problem = f"nothing can be kept on disk ({problem})"

    def _open(self) -> None:
        self._world = find_world()
        self.folder = state_folder("servers", hashlib.sha256(self.name.encode()).hexdigest()[:16])
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._take(lock)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        remove_unfinished(self.folder)
        _check_database(self.sessions)
        self._kernels = {
            kernel_id: facts
            for kernel_id, facts in (take_json(self.folder / "kernels.json", log) or {}).items()
            if _is_id(kernel_id) and _are_facts(facts)
        }
        self.lost_cells = {
            kernel_id: good
            for kernel_id, headers in (take_json(self.folder / "held.json", log) or {}).items()
            if _is_id(kernel_id) and isinstance(headers, list) and (good := list(filter(_is_header, headers)))
        }

    def _take(self, lock: int) -> None:
        """Lock the file. The system gives the lock to a server that waits as soon as the other one has ended."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not self._waits:
                raise
            log.warning("The server named %r runs. This one waits for its end.", self.name)
            fcntl.flock(lock, fcntl.LOCK_EX)

    @property
    def has_lock(self) -> bool:
        return self._lock is not None

    @property
    def kernels(self) -> Mapping[str, Mapping[str, str]]:
        """The facts about kernels, by id: `name`, `cwd`, `session`, and the `world` of the server that had it."""
        return self._kernels

    @property
    def sessions(self) -> Path:
        return self.folder / "sessions.db"

    def note(self, kernel_id: str, **facts: str) -> None:
        """Keep facts about a kernel on disk.

        If this fails, the next server lists the kernel only when its scheduler answers.
        """
        self._kernels[kernel_id] = {**facts, "world": self._world}
        self._write("kernels.json", self._kernels)

    def forget(self, kernel_id: str) -> None:
        if self._kernels.pop(kernel_id, None) is not None:
            self._write("kernels.json", self._kernels)

    def note_held(self, kernel_id: str, headers: list[dict[str, Any]]) -> None:
        """Keep the headers of the cells that this server now holds for a kernel.

        They replace earlier headers.
        """
        if headers != self._held.get(kernel_id, []):
            self._held[kernel_id] = headers
            self._write_held()

    def take_lost_cells(self, kernel_id: str, session: str) -> list[dict[str, Any]]:
        """Return, and forget, the headers of a session's cells that an earlier server held and did not run."""
        lost = self.lost_cells.get(kernel_id, [])
        own = [header for header in lost if header.get("session") == session]
        if own:
            self.lost_cells[kernel_id] = [header for header in lost if header not in own]
            self._write_held()
        return own

    def _write_held(self) -> None:
        held = {
            kernel_id: [*self.lost_cells.get(kernel_id, []), *self._held.get(kernel_id, [])]
            for kernel_id in self.lost_cells.keys() | self._held.keys()
        }
        self._write("held.json", {kernel_id: headers for kernel_id, headers in held.items() if headers})

    def close(self) -> None:
        """Give up the lock, so that another server can take the name."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, name: str, value: Any) -> None:
        if self.has_lock:
            try:
                write_private_json(self.folder / name, value)
            except OSError as problem:
                self.problem = f"{self.folder} cannot be written: {problem.strerror}"


def _check_database(path: Path) -> None:
    """Put Jupyter Server's sessions aside if they are no database. Otherwise the server could not start."""
    try:
        with open(open_checked(path), "rb") as file:
            start = file.read(len(_SQLITE))
    except FileNotFoundError:
        return
    except UnfitFile as problem:
        put_aside(path, problem.reason, log)
        return
    if start not in (b"", _SQLITE):
        put_aside(path, "is no SQLite database", log)


def _is_id(kernel_id: str) -> bool:
    return 0 < len(kernel_id) <= _LONGEST_ID and kernel_id.isprintable()


def _are_facts(facts: Any) -> bool:
    """True if these are facts about a kernel: texts that the environment of a process can have."""
    return isinstance(facts, dict) and all(
        isinstance(fact, str) and "\0" not in fact for fact in facts.values()
    )


def _is_header(header: Any) -> bool:
    """True if this is the header of a message of Jupyter."""
    return isinstance(header, dict) and all(
        isinstance(header.get(name), str) for name in ("msg_id", "session")
    )
