"""Makes files that no reader expects: pipes, links, folders, and contents of any form."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path


def _make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


BAD_FILES: Mapping[str, Callable[[Path], object]] = {
    "brackets": lambda path: path.write_text("[" * 200_000),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "pipe": lambda path: os.mkfifo(path),
    "sparse": _make_sparse,
    "bytes": lambda path: path.write_bytes(b"\xff\xfe{\x00"),
    "empty": lambda path: path.touch(),
    "number": lambda path: path.write_text("7"),
    "infinite": lambda path: path.write_text('{"pid": 1e999, "started_at": -Infinity, "managers": [1e999]}'),
    "types": lambda path: path.write_text('{"lease": [], "pid": "x", "managers": {"a": 1}, "endpoint": 7}'),
}
"""For each kind of bad file, a function that makes one at a path."""
