"""Removes the kernelspecs that a migration has written, and puts back the old ones that it has put aside."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from roost.provisioners.kernel_resources import find_place, list_unfinished
from roost.scheduler.errors import ConfigError

from .found_kernelspecs import ASIDE, list_folders, search_path
from .mark import Mark, is_unchanged, read_marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """A kernelspec that a migration has written; with `mark` None, an old one whose new kernelspec is missing.

    `folder` is its place. `written` is the folder that is removed: another one if an earlier undo was killed.
    `is_edited` is also True for a copy that a person has made under another name.
    """

    folder: Path
    written: Path
    mark: Mark | None
    is_edited: bool = False

    @property
    def aside(self) -> Path:
        """Where the old kernelspec is, if the new one has taken its place."""
        return self.folder.parent.with_name(ASIDE) / self.folder.name


def find_migrated(more: Sequence[Path] = ()) -> list[Migrated]:
    """Return the kernelspecs that a migration has written, in Jupyter's order.

    `more` are further folders of kernelspecs. An old kernelspec that was put aside counts if its place is free: a
    migration was killed, or a person has removed the new one.
    """
    found = []
    for home in dict.fromkeys([*search_path(), *more]):
        for written in list_folders(home):
            if marked := read_marked(written):
                document, mark = marked
                folder = find_place(written)
                is_copy = folder.name != Path(mark.source).name
                is_edited = folder == written and (is_copy or not is_unchanged(written, document, mark))
                found.append(Migrated(folder=folder, written=written, mark=mark, is_edited=is_edited))
        for old in list_folders(home.with_name(ASIDE)):
            folder = home / old.name
            if not os.path.lexists(folder):
                found.append(Migrated(folder=folder, written=folder, mark=None))
    return found


def undo(migrated: Migrated) -> None:
    """Remove a kernelspec that a migration has written, and put back the old one. Raises `ConfigError`.

    The folders that were made for it remain: see `remove_made`. If this process is killed, the next call goes on.
    """
    folder, written, aside = migrated.folder, migrated.written, migrated.aside
    if migrated.is_edited:
        raise ConfigError(
            f"{folder} has changed since the migration, and stays: `roost kernelspec remove {folder.name}` removes it."
        )
    try:
        if folder == written and migrated.mark is not None:
            written = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                folder.rename(written)
            except BaseException:
                written.rmdir()
                raise
        if aside.is_dir() and not os.path.lexists(folder):
            aside.rename(folder)
            with suppress(OSError):  # others are there
                aside.parent.rmdir()
        for unfinished in dict.fromkeys([*list_unfinished(folder), written]):
            if unfinished != folder:
                _remove(unfinished)
    except FileNotFoundError:  # another undo has been faster
        pass
    except OSError as problem:
        raise ConfigError(f"{folder} cannot be removed: {problem.strerror or problem}.") from None


def _remove(folder: Path) -> None:
    """Remove a folder with its kernel.json last, so that the next undo knows a folder that was not removed wholly."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name != "kernel.json":
            each.unlink()
    shutil.rmtree(folder)


def remove_made(undone: Sequence[Migrated]) -> None:
    """Remove the folders that were made for kernelspecs, if they are empty now."""
    made = {Path(folder) for each in undone if each.mark for folder in each.mark.made}
    for folder in sorted(made, key=lambda each: len(each.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()
