"""Folders in which processes write: `Path.rglob` of Python before 3.13 fails where a folder ends meanwhile."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def walk(folder: Path) -> Iterator[Path]:
    """Yield each folder and file below a folder, but what is removed meanwhile."""
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def read_files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield each regular file below a folder with its content, but what is removed meanwhile."""
    for path in walk(folder):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.read_bytes()
