"""`SocketFolders`: how this machine reaches containers of a Podman without root, whose addresses it does not reach.

Each container has a folder of this machine, under the same path. Its agent and its kernel listen there on Unix sockets.
The user of the kernel is the engine's own user outside of the container, and nobody else can enter the folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from roost.launchers.daemon.tasks import in_thread
from roost.scheduler.errors import LaunchError

from .engine import JsonObject
from .names import SOCKETS_LABEL

_FOLDER = "roost-kernels"
_DEADLINE_S = 10.0
_LONGEST = 90
"""The longest path of a folder. That of a socket in it may have 107 bytes."""
_YOUNG_S = 120.0
"""A younger folder may belong to a container that is being made."""


class SocketFolders:
    """The folders of all containers of the engine at `address`, beside its socket."""

    def __init__(self, address: str) -> None:
        self._socket = Path(address.removeprefix("unix://"))
        self.base = self._socket.parent / _FOLDER

    async def make(self) -> str:
        """Make a folder for a container, and return its path. Raises `LaunchError`."""
        try:
            return await in_thread(self._make, deadline_s=_DEADLINE_S, name="docker-sockets")
        except OSError as problem:
            raise LaunchError(f"{self.base} cannot be used for sockets: {problem.strerror}.") from None

    def _make(self) -> str:
        engine = self._socket.stat()
        folder = self.base / secrets.token_hex(5)
        if len(os.fsencode(folder)) > _LONGEST:
            raise LaunchError(
                f"the path of the engine's socket {self._socket} is too long: use a shorter one."
            )
        for each in (self.base, folder):
            with suppress(FileExistsError):
                each.mkdir(mode=0o700)
                if os.geteuid() != engine.st_uid:  # root uses another user's engine
                    os.chown(each, engine.st_uid, engine.st_gid)
        return str(folder)

    async def remove(self, labels: Mapping[str, str]) -> None:
        """Remove the folder of a container with these labels, if it has one. May be repeated."""
        folder = Path(labels.get(SOCKETS_LABEL, ""))
        if folder.parent == self.base and folder.name.isalnum():
            await in_thread(lambda: shutil.rmtree(folder, ignore_errors=True), name="docker-sockets")

    async def remove_left(self, containers: Collection[JsonObject]) -> None:
        """Remove the folders that none of these containers has. They are all containers of roost."""
        known = {each["Labels"].get(SOCKETS_LABEL) for each in containers}

        def remove() -> None:
            with suppress(FileNotFoundError):
                for folder in list(self.base.iterdir()):
                    if str(folder) not in known and time.time() - folder.lstat().st_mtime > _YOUNG_S:
                        shutil.rmtree(folder, ignore_errors=True)

        await in_thread(remove, name="docker-sockets")
