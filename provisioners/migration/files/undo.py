"""Removes the kernelspecs that a migration has written, and puts back the old ones that it has put aside."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from roost.scheduler.errors import ConfigError

from .found_kernelspecs import ASIDE, list_folders, search_path
from .mark import Mark, is_unchanged, read_marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """A kernelspec that a migration has written; with `mark` None, an old one whose new kernelspec is missing."""

    folder: Path
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
        for folder in list_folders(home):
            if marked := read_marked(folder):
                document, mark = marked
                is_edited = not is_unchanged(folder, document, mark)
                found.append(Migrated(folder=folder, mark=mark, is_edited=is_edited))
        aside = (home / old.name for old in list_folders(home.with_name(ASIDE)))
        found += [Migrated(folder=folder, mark=None) for folder in aside if not os.path.lexists(folder)]
    return found


def undo(migrated: Migrated) -> None:
    """Remove a kernelspec that a migration has written, and put back the old one. Raises `ConfigError`.

    The folders that were made for it remain: see `remove_made`.
    """
    folder, aside = migrated.folder, migrated.aside
    if migrated.is_edited:
        raise ConfigError(
            f"{folder} has changed since the migration, and stays: `roost kernelspec remove {folder.name}` removes it."
        )
    try:
        removed = None
        if migrated.mark is not None:
            removed = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            folder.rename(removed)
        if aside.is_dir():
            aside.rename(folder)
            with suppress(OSError):  # others are there
                aside.parent.rmdir()
        if removed is not None:
            shutil.rmtree(removed)
    except OSError as problem:
        raise ConfigError(f"{folder} cannot be removed: {problem.strerror or problem}.") from None


def remove_made(undone: Sequence[Migrated]) -> None:
    """Remove the folders that were made for kernelspecs, if they are empty now."""
    made = {Path(folder) for each in undone if each.mark for folder in each.mark.made}
    for folder in sorted(made, key=lambda each: len(each.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()
