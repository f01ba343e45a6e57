"""Private folders (mode 0700) and files (0600) of this user. Files are written as a whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

from .file_input import UnfitFile, open_checked
from .file_input import read_json as read_json


class FolderError(OSError):
    """A folder is not private, or cannot be made. The text says what to do."""


def runtime_dir(*, run_user: Path = Path("/run/user"), tmp: Path = Path("/tmp")) -> Path:
    """Return the folder for this user's sockets, locks and records on this machine. Raises `FolderError`.

    It is `$ROOST_RUNTIME_DIR`, else `roost` in `$XDG_RUNTIME_DIR`, else `roost` in `/run/user/<uid>` (cron and sudo
    lack the variable), else `/tmp/roost-<uid>`, or a longer name if another user has taken this one. TMPDIR is ignored:
    all processes of a user must find the same folder.
    """
    chosen = os.environ.get("ROOST_RUNTIME_DIR")
    if chosen:
        if not os.path.isabs(chosen):
            raise FolderError(f"ROOST_RUNTIME_DIR must be an absolute path, not {chosen!r}")
        return _private_folder_in_safe_place(Path(chosen))
    for base in (os.environ.get("XDG_RUNTIME_DIR"), f"{run_user}/{os.getuid()}"):
        if base and is_own_folder(base):
            return _private_folder_in_safe_place(Path(base) / "roost")
    return _private_folder_in_safe_place(_choose_in_tmp(tmp / f"roost-{os.getuid()}"))


def _choose_in_tmp(usual: Path) -> Path:
    """Return `usual`. If another user has it, or has had it, return a folder of this user with that name and a time.

    Of several such folders it is the oldest, as another process may have made one just before.
    """
    own = _find_own(usual)
    if not own:
        if not os.path.lexists(usual) or usual.lstat().st_uid == os.getuid():
            return usual
        usual.with_name(f"{usual.name}.{time.time_ns()}").mkdir(mode=0o700)
        own = _find_own(usual)
    return own[0]


def _find_own(usual: Path) -> list[Path]:
    return sorted(path for path in usual.parent.glob(f"{usual.name}.*") if _is_own_real_folder(path))


def _is_own_real_folder(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:  # it is gone
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _private_folder_in_safe_place(path: Path) -> Path:
    """Return `path` as a private folder. Raise `FolderError` if another user could rename and replace it."""
    private_folder(path)
    for parent in path.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            problem = f"other users can replace {path}, because all may write to {parent}"
            remedy = f"{_write_command('+t', parent)}, or set ROOST_RUNTIME_DIR to another place"
            raise FolderError(f"{problem}; {remedy}")
    return path


def is_own_folder(folder: str) -> bool:
    """True if this user owns the folder and can write to it.

    With sudo, XDG_RUNTIME_DIR may name a folder of another user.
    """
    try:
        status = os.stat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and os.access(folder, os.W_OK)


def is_own_file(path: Path) -> bool:
    """True if `path` is a regular file that belongs to this user, and not a symbolic link."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()


def private_folder(path: Path) -> Path:
    """Make `path` with mode 0700. If it exists, check that only this user can enter it. Raises `FolderError`."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        problem = f"cannot make the folder {path}: {error.strerror}; set ROOST_RUNTIME_DIR"
        raise FolderError(problem) from None
    if not stat.S_ISDIR(status.st_mode):
        raise FolderError(f"{path} is not a folder; remove it or set ROOST_RUNTIME_DIR to another place")
    if status.st_uid != os.getuid():
        raise FolderError(f"{path} belongs to another user; set ROOST_RUNTIME_DIR to a folder of your own")
    if status.st_mode & 0o077:
        raise FolderError(f"{path} can be entered by other users; {_write_command('700', path)}")
    return path


def _write_command(mode: str, path: Path) -> str:
    """Return the advice to run `chmod`. The backticks keep a full stop behind it out of the command."""
    from shlex import quote  # here, because each application imports this module

    return f"run `chmod {mode} {quote(str(path))}`"


def state_folder(*names: str) -> Path:
    """Create and return the folder `names` below the state folder: `$XDG_STATE_HOME/roost`, `~/.local/state/roost`.

    Only this user can enter it and the folders above it that belong to roost. Raises `FolderError`.
    """
    folder = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))
    for name in ("roost", *names):
        folder /= name
        private_folder(folder)
    return folder


def write_private(path: Path, content: bytes) -> None:
    """Replace the content of `path` (mode 0600). An error, such as a full disk, leaves the old content."""
    write_whole(path, content, mode=0o600)


def write_whole(path: Path, content: bytes, *, mode: int) -> None:
    """Replace `path` by a file of this mode, less the umask. An error leaves the old file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that `write_whole` left in this folder when its process was killed.

    Call it only in the one process that writes to the folder. Raises `OSError`.
    """
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def write_private_json(path: Path, value: Any) -> None:
    write_private(path, json.dumps(value).encode())


def tail(path: Path, size_bytes: int) -> str:
    """Return the last `size_bytes` of a text file from the first whole line on. Empty if the file cannot be read."""
    try:
        with open(open_checked(path), "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size_bytes))
            content = file.read(size_bytes)
    except (OSError, UnfitFile):
        return ""
    if length > size_bytes and b"\n" in content[:-1]:
        content = content[content.index(b"\n") + 1 :]
    return content.decode(errors="replace")


def shorten(path: Path, *, over_bytes: int, keep_bytes: int) -> bool:
    """Cut a log that is longer than `over_bytes` to about its last `keep_bytes`. Return True if it was cut.

    Lines written meanwhile may be lost. Processes that write to the log must append (O_APPEND).
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size <= over_bytes:
            return False
        with path.open("r+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - keep_bytes))
            kept = file.read(keep_bytes)
            file.truncate(0)
            with path.open("ab") as end:
                end.write(b"[roost: earlier lines were removed]\n" + kept.partition(b"\n")[2])
    except FileNotFoundError:
        return False
    return True
