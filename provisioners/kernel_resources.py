"""The logos and other files of a kernelspec, for a copy of it, and the writing of that copy.

The files may be in anybody's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import open_input

MOST_BYTES = 10 << 20
"""At most this many bytes are in all files of a kernelspec together."""
_MOST_FILES = 1_000
_LEFT_OUT = ("__pycache__",)
_WRITTEN = "kernel.json"  # the copy gets its own


def list_resources(folder: Path, *, most_bytes: int = MOST_BYTES) -> Mapping[str, Path]:
    """Return the files of a kernelspec's folder by their paths in it. Raises `ConfigError`.

    A link to a file in the same folder counts as that file. All other links are refused: a copy would show a file that
    the kernelspec's author cannot read, or would never end.
    """
    if not folder.is_dir():
        return {}
    folder = folder.resolve()
    found: dict[str, Path] = {}
    size = 0
    for path in _walk(folder):
        file = _follow(path, folder)
        descriptor = open_input(file)
        size += os.fstat(descriptor).st_size
        os.close(descriptor)
        found[str(path.relative_to(folder))] = file
        if len(found) > _MOST_FILES:
            raise ConfigError(
                f"{folder} has more than {_MOST_FILES:,} files: it is no folder of a kernelspec."
            )
        if size > most_bytes:
            most = most_bytes >> 20
            raise ConfigError(
                f"the files in {folder} have more than {most} MiB together: remove the largest."
            )
    return found


def write_kernelspec(
    folder: Path,
    document: Mapping[str, Any],
    resources: Mapping[str, Path],
    *,
    make_way: Callable[[Path], object],
) -> None:
    """Write a kernelspec with the files of `list_resources`. Its folder appears complete, by one rename.

    `make_way` gets the folder just before that, to put aside what is there. Raises `ConfigError` for the resources,
    and `OSError` for the target.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, file in resources.items():
            _copy(file, written / name)
        written.chmod(0o755)
        (written / _WRITTEN).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        make_way(folder)
        written.rename(folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _copy(file: Path, target: Path) -> None:
    with open(open_input(file), "rb") as source:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o755 if os.access(file, os.X_OK) else 0o644
        with open(
            os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb"
        ) as written:
            shutil.copyfileobj(source, written)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield everything in the folder that is no folder itself."""
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        for name in sorted(folders):
            if os.path.islink(Path(parent, name)):
                raise ConfigError(
                    f"{Path(parent, name)} is a link to a folder: remove it, or copy the folder there."
                )
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(files):
            if parent != str(folder) or name != _WRITTEN:
                yield Path(parent, name)


def _follow(path: Path, folder: Path) -> Path:
    """Return the file that a link in the folder means, or the path itself if it is no link. Raises `ConfigError`."""
    if not path.is_symlink():
        return path
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        raise ConfigError(f"{path} is a link to nothing: remove it.") from None
    if not found.is_relative_to(folder):
        raise ConfigError(
            f"{path} is a link to a file outside of {folder}: remove it, or copy the file there."
        )
    return found


def _refuse(problem: OSError) -> None:
    raise ConfigError(f"{problem.filename} cannot be read: {problem.strerror}.")
