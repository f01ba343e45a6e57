"""The identity of this machine among those that a person reaches by name: two names may lead to one machine.

Machines that were copied from one image often have the same /etc/machine-id. So the identity also has a random part,
which the first agent writes beside the book.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile, open_checked

FILE = "roost-machine"
_RANDOM = re.compile(rb"[0-9a-f]{32}\n")
_SYSTEMS_FILE = Path("/etc/machine-id")


def find_machine_id(folders: Iterable[Path]) -> str:
    """Return 32 hex digits. All users of the machine get the same ones, and other machines get others.

    The random part is in the first of the folders that has one, or in which this user can write one. A stranger who
    copies another machine's random part gains nothing, because the host name counts too.
    """
    parts = [_find_random(folders), _read_systems(), socket.gethostname()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _find_random(folders: Iterable[Path]) -> str:
    for folder in folders:
        path = folder / FILE
        if found := _read(path) or _write(path):
            return found
    return ""


def _read(path: Path) -> str:
    with contextlib.suppress(OSError, UnfitFile):
        with open(open_checked(path, most_bytes=64), "rb") as file:
            content = file.read(64)
        if _RANDOM.fullmatch(content):
            return content.decode().strip()
    return ""


def _write(path: Path) -> str:
    """Write a new random part, and return what is there then. All users may read it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
        )
    except OSError:
        return ""
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(f"{secrets.token_hex(16)}\n".encode())
        os.link(temporary, path)  # fails if another user was faster
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return _read(path)


def _read_systems() -> str:
    try:
        return _SYSTEMS_FILE.read_text().strip()
    except (OSError, ValueError):
        return ""
