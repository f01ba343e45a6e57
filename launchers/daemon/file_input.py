"""Files as input from a stranger. Each file is opened without waiting, checked, and read up to a greatest size.

    read_content ──> read_document ──> read_json: None if there is no good file
                          └──────────> take_json: puts a bad file aside, with a line in the log

A folder, a device and a pipe are refused. In roost's own folders a link is refused too. The files of users, operators
and Kubernetes may be links (`may_be_link`).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .json_text import UnfitText, parse_json

MOST_RECORD_BYTES = 1 << 20
"""The greatest size of a file about one thing: a kernel's record, a daemon's announcement, a kernelspec, a key pair."""
MOST_OWN_BYTES = 64 << 20
"""The greatest size of a file of roost's about many things, such as the agents of all nodes."""
_UNREADABLE = ".unreadable"
"""A file that was put aside has this at the end of its name."""
_OF_THE_FILE = frozenset(
    {
        errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM,
        errno.ENAMETOOLONG,
    }
)  # fmt: skip
"""The errors that only this file has. After other errors, such as a lack of descriptors, the file may be good."""
_KINDS: Mapping[int, str] = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFLNK: "is a link",
    stat.S_IFIFO: "is a pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}
_STRANGE = "is no regular file"


class UnfitFile(ValueError):
    """A file that cannot be used. The text is a sentence without a full stop, and begins with the file's path.

    `reason` is the text without the path.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        is_kind = reason in _KINDS.values()
        super().__init__(f"{show_path(path)} {'cannot be read: it ' if is_kind else ''}{reason}")
        self.reason = reason


def show_path(path: str | os.PathLike[str]) -> str:
    """Return a path for a sentence: characters that cannot be shown are escaped, and a long path is cut."""
    text = os.fspath(path)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 500 else f"{text[:300]}…{text[-100:]}"


def read_content(
    path: str | os.PathLike[str], *, most_bytes: int = MOST_RECORD_BYTES, may_be_link: bool = False
) -> bytes:
    """Return the content of a regular file. Raises `UnfitFile`, and `FileNotFoundError` if there is none.

    Raises another `OSError` if that error says nothing about the file.
    """
    with open(open_checked(path, most_bytes=most_bytes, may_be_link=may_be_link), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:  # it has grown meanwhile, or is a file of the system, which has no size
        raise UnfitFile(path, _describe_size(most_bytes))
    return content


def open_checked(
    path: str | os.PathLike[str], *, most_bytes: int | None = None, may_be_link: bool = False
) -> int:
    """Open a regular file for reading and return its descriptor. Raises as `read_content`."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags if may_be_link else flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as problem:
        if problem.errno not in _OF_THE_FILE:
            raise
        raise UnfitFile(path, _find_kind(path) or f"cannot be read: {problem.strerror}") from None
    except ValueError:  # a zero byte, or a character that no file's name can have
        raise UnfitFile(path, "cannot be the name of a file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnfitFile(path, _KINDS.get(stat.S_IFMT(status.st_mode), _STRANGE))
        if most_bytes is not None and status.st_size > most_bytes:
            raise UnfitFile(path, _describe_size(most_bytes))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_text(
    path: str | os.PathLike[str], *, most_bytes: int = MOST_RECORD_BYTES, may_be_link: bool = False
) -> str:
    """Return the text of a regular file in UTF-8. Raises as `read_content`."""
    try:
        return read_content(path, most_bytes=most_bytes, may_be_link=may_be_link).decode()
    except UnicodeDecodeError as problem:
        raise UnfitFile(path, f"is not UTF-8 (byte {problem.start})") from None


def read_document(
    path: str | os.PathLike[str], *, most_bytes: int = MOST_RECORD_BYTES, may_be_link: bool = False
) -> Any:
    """Return the JSON value in a file. Raises as `read_content`."""
    try:
        return parse_json(read_content(path, most_bytes=most_bytes, may_be_link=may_be_link))
    except UnfitText as problem:
        raise UnfitFile(path, str(problem)) from None


def read_json(path: Path, *, most_bytes: int = MOST_OWN_BYTES) -> Any:
    """Return the JSON value in a file of roost's. Return None if the file is missing or cannot be used.

    Raises `OSError` if that error says nothing about the file.
    """
    try:
        return read_document(path, most_bytes=most_bytes)
    except (FileNotFoundError, UnfitFile):
        return None


def take_json(path: Path, log: logging.Logger, kind: type = dict, *, most_bytes: int = MOST_OWN_BYTES) -> Any:
    """Return the same as `read_json`. A file that cannot be used is put aside, with one line in `log`.

    So is a file with a value of another type than `kind`.
    """
    try:
        value = read_document(path, most_bytes=most_bytes)
    except FileNotFoundError:
        return None
    except UnfitFile as problem:
        put_aside(path, problem.reason, log)
        return None
    if isinstance(value, kind):
        return value
    put_aside(path, f"has a JSON value of the type {type(value).__name__} instead of {kind.__name__}", log)
    return None


def put_aside(path: Path, reason: str, log: logging.Logger, *, aside: Path | None = None) -> None:
    """Rename a file or folder that cannot be used, and log it in one line. `reason` is a predicate.

    The new name is `aside`, or that of `path` with the ending `.unreadable`. An earlier file of that name is removed.
    """
    aside = aside or path.with_suffix(_UNREADABLE)
    try:
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        elif path.is_dir():  # no folder can take the name of a file
            aside.unlink(missing_ok=True)
        path.rename(aside)
    except OSError as problem:
        log.error("%s %s, and cannot be put aside: %s", show_path(path), reason, problem.strerror)
    else:
        log.error("%s is put aside as %s: it %s", show_path(path), show_path(aside.name), reason)


def _find_kind(path: str | os.PathLike[str]) -> str:
    """Return what stands at `path` instead of a regular file, as a predicate; empty if that is unknown."""
    try:
        return _KINDS.get(stat.S_IFMT(os.lstat(path).st_mode), "")
    except (OSError, ValueError):
        return ""


def _describe_size(most_bytes: int) -> str:
    size = f"{most_bytes >> 20} MiB" if most_bytes >= 1 << 20 else f"{most_bytes >> 10} KiB"
    return f"has more than {size}"
