"""The files from which a process has read its settings, and their changes since then."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile, read_content, show_path

_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file that is not as it was when the settings were read."""

    path: Path
    what: str
    """The change, as a predicate: `has changed`, `is new` or `is gone`."""
    at: float | None
    """When it was written, in seconds since the epoch; None if it is gone."""

    def __str__(self) -> str:
        when = f" ({time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.at))})" if self.at else ""
        return f"{show_path(self.path)} {self.what}{when}"


class ReadFiles:
    """The files of settings. A file that did not exist is among them, because it may exist by now.

    Contents are compared, so a file that was only touched, or written as it was, has not changed.
    """

    def __init__(self) -> None:
        self.read_at = time.time()
        """When the first file was read, in seconds since the epoch."""
        self._found: dict[Path, str] = {}

    def note(self, path: Path) -> None:
        """Remember the file as it is now. Call it before the file is read, so that no change is missed."""
        self._found.setdefault(path, _digest(path))

    def list_changes(self) -> list[FileChange]:
        """Return the files that differ by now, in the order of their names. Blocks: it reads all of them."""
        found = []
        for path, before in sorted(self._found.items()):
            now = _digest(path)
            if now != before:
                what = "is gone" if not now else "has changed" if before else "is new"
                found.append(FileChange(path=path, what=what, at=_find_time(path)))
        return found


def _digest(path: Path) -> str:
    """Return a digest of the file's content, or why it cannot be read; empty if there is no such file."""
    try:
        return hashlib.sha256(read_content(path, most_bytes=_MOST_BYTES, may_be_link=True)).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnfitFile) as problem:
        return str(problem) or type(problem).__name__


def _find_time(path: Path) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
