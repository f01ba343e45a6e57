"""Chooses the folder of a new kernelspec, which Jupyter must search before the folder of the old one.

If there is none, the new kernelspec takes the old one's place, and the old one is put aside.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jupyter_core import paths

from roost.scheduler.errors import ConfigError

from .found_kernelspecs import ASIDE, FoundKernelspec, list_folders, search_path
from .mark import read_marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a new kernelspec goes."""

    folder: Path
    aside: Path | None = None
    """Where the old kernelspec goes, whose place the new one takes; None if it stays."""
    note: str = ""
    """A sentence for the user about this place, or empty."""

    def list_missing(self, has_settings: bool) -> list[Path]:
        """Return the folders that must be made for the kernelspec, and for its settings if it has some."""
        starts = [self.folder.parent, *([find_config_folder(self.folder.parent)] if has_settings else [])]
        found: list[Path] = []
        for start in starts:
            for each in (start, *start.parents):
                if each.exists():
                    break
                if each not in found:
                    found.append(each)
        return found


def find_config_folder(home: Path) -> Path:
    """Return the folder of the settings that belong to the kernelspecs in `home`: one that a service here reads.

    Of an installation prefix that Jupyter does not search here, it is the folder that its own Jupyter reads.
    """
    data, user = home.parent, Path(paths.jupyter_config_dir()).absolute()
    if data == Path(paths.jupyter_data_dir()).absolute() or data.parts[-2:] != ("share", "jupyter"):
        return user
    beside = data.parent.parent / "etc" / "jupyter"
    is_read = str(beside) in paths.jupyter_config_path()
    return beside if is_read or home not in search_path() else user


def choose_target(old: FoundKernelspec, *, prefix: str | None = None, is_user: bool = False) -> Target:
    """Return where the new kernelspec of an old one goes. Raises `ConfigError` if there is no place for it.

    `prefix` is an installation prefix. With `is_user` the user's own folder is taken. Otherwise it is the first of the
    user's folder, the environment's and the others that Jupyter searches before the old one, and that can be written.
    """
    path = search_path()
    home = old.home
    before = path[: path.index(home)] if home in path else path
    own = Path(paths.jupyter_data_dir()).absolute() / "kernels"
    environment = Path(paths.ENV_JUPYTER_PATH[0], "kernels")
    if is_user or prefix is not None:
        chosen = own if is_user else find_home(prefix or "")
        note = _explain(chosen, home, path)
    else:
        choices = [each for each in dict.fromkeys((own, environment, *before)) if each in before]
        chosen = next((each for each in choices if _can_write(each)), home)
        note = ""
    folder = chosen / old.name
    if chosen in path:
        _check_hidden(folder, path)
    if chosen != home:
        return Target(folder=folder, note=note)
    if home not in path:
        raise ConfigError(f"You can write to no folder that Jupyter searches ({path[0]}, …): use --prefix.")
    if not _can_write(home) or not _can_write(home.with_name(ASIDE)):
        raise ConfigError(
            f"Jupyter searches no folder before {home} that you can write to: run roost as the owner of {home}."
        )
    if folder.is_symlink() and not folder.resolve().is_dir():
        raise ConfigError(f"{folder} is a link to nothing: remove it.")
    aside = home.with_name(ASIDE) / old.name
    if old.folder != aside and os.path.lexists(aside):
        raise ConfigError(f"An earlier run has put another kernelspec aside as {aside}: move it away first.")
    return Target(
        folder=folder,
        aside=None if old.folder == aside else aside,
        note=f"The old kernelspec is kept as {aside}, because Jupyter searches {home} first.",
    )


def find_home(prefix: str) -> Path:
    """Return the folder of kernelspecs below an installation prefix. Raises `ConfigError`."""
    if not prefix or "\0" in prefix:
        raise ConfigError("--prefix names no folder: give one, or use --user.")
    return Path(prefix).absolute() / "share" / "jupyter" / "kernels"


def _explain(chosen: Path, home: Path, path: Sequence[Path]) -> str:
    """Return a sentence if Jupyter here does not look into the folder. Raise `ConfigError` if it finds the old one."""
    if chosen == home:
        return ""
    if chosen not in path:
        return f"Jupyter does not look into {chosen} here: put {chosen.parent} into JUPYTER_PATH."
    if home in path and path.index(home) < path.index(chosen):
        raise ConfigError(
            f"Jupyter searches {home} before {chosen} and would still find the old kernelspec: choose no folder."
        )
    return ""


def _check_hidden(folder: Path, path: Sequence[Path]) -> None:
    """Raise `ConfigError` if Jupyter may find another kernelspec of this name before the new one."""
    for home in path[: path.index(folder.parent) + 1]:
        for each in list_folders(home):
            is_other = each.name.lower() == folder.name.lower() and each != folder
            if is_other and read_marked(each) is None:
                raise ConfigError(
                    f"Jupyter finds the kernelspec in {each} first: move it away, or leave this one as it is."
                )


def _can_write(folder: Path) -> bool:
    """True if this user can write to the folder, or make it."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
