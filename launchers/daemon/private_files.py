"""Private folders and files: 0700 and 0600, ours, and written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

_RUN_USER = Path("/run/user")
_TMP = Path("/tmp")


class FolderError(OSError):
    """A folder that must be private is not, or cannot be made; the text says what to do."""


def runtime_dir() -> Path:
    """The folder for all of roost's sockets, locks and records of this user on this machine.

    `$ROOST_RUNTIME_DIR`, else `roost` in the user's own runtime folder (`$XDG_RUNTIME_DIR`, or `/run/user/<uid>`
    where a caller such as cron, sudo or a spawner does not have that variable), else `/tmp/roost-<uid>` whatever
    TMPDIR says: all of a user's processes should meet in one folder. Raises `FolderError`.
    """
    chosen = os.environ.get("ROOST_RUNTIME_DIR")
    if chosen:
        if not os.path.isabs(chosen):
            raise FolderError(f"ROOST_RUNTIME_DIR must be an absolute path, not {chosen!r}")
        return private_folder(Path(chosen))
    for base in (os.environ.get("XDG_RUNTIME_DIR"), f"{_RUN_USER}/{os.getuid()}"):
        if base and _is_ours(base):
            return private_folder(Path(base) / "roost")
    return private_folder(_TMP / f"roost-{os.getuid()}")


def _is_ours(folder: str) -> bool:
    """Whether it is a folder of this user: with sudo or su, XDG_RUNTIME_DIR may name another's."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and os.access(folder, os.W_OK)


def private_folder(path: Path) -> Path:
    """Make `path` (with mode 0700) or check that it is a folder of ours that nobody else can enter."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as problem:
        raise FolderError(
            f"cannot make the folder {path}: {problem.strerror}; set ROOST_RUNTIME_DIR"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise FolderError(f"{path} is not a folder; remove it or set ROOST_RUNTIME_DIR to another place")
    if status.st_uid != os.getuid():
        raise FolderError(f"{path} belongs to another user; set ROOST_RUNTIME_DIR to a folder of your own")
    if status.st_mode & 0o077:
        raise FolderError(f"{path} can be entered by other users; run: chmod 700 {path}")
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` (mode 0600) as a whole; on an error (a full disk) the old content stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_private_json(path: Path, value: Any) -> None:
    """`write_private` of a JSON value."""
    write_private(path, json.dumps(value).encode())


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None when there is none or it is not whole."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def tail(path: Path, size_bytes: int) -> str:
    """The last `size_bytes` of a text file, from the start of a line where there is one; empty if missing."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size_bytes))
            content = file.read(size_bytes)
    except OSError:
        return ""
    if length > size_bytes and b"\n" in content[:-1]:
        content = content[content.index(b"\n") + 1 :]
    return content.decode(errors="replace")
