"""Finds old kernelspecs, writes the new ones and their settings, and puts the old ones back.

If the new kernelspec takes the old one's place, the old one is kept beside `kernels` as `NAME.before-roost`. A mark in
the metadata of a new kernelspec says from which folder it comes, and whether a person has changed it since.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core import paths

from roost.provisioners.kernel_json import read_document
from roost.provisioners.kernel_resources import list_resources, write_kernelspec
from roost.scheduler.errors import ConfigError

from .old_kernelspec import is_theirs

_ASIDE = ".before-roost"
_MARK = "roost_migration"
"""The key in a kernelspec's metadata under which a migration leaves its mark."""
_MOST_BYTES = 1 << 30
"""At most this many bytes are in all files of an old kernelspec together: those of Scala bring their kernel."""
_SETTINGS = ("jupyter_roost_config.json", "jupyter_roost_config.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An old kernelspec. `place` is the folder of the new one, if an earlier run has written it; else None.

    `folder` may be gone then. `is_edited` says whether a person has changed the new one.
    """

    name: str
    folder: Path
    place: Path | None = None
    is_edited: bool = False


def search_path() -> list[Path]:
    """Return the folders of kernelspecs that Jupyter searches, in its order."""
    return [Path(folder).absolute() for folder in KernelSpecManager().kernel_dirs]


def read_homes(named: Iterable[str]) -> list[Path]:
    """Return the folders of kernelspecs that `--from` names: each is one, or holds `kernels`. Raises `ConfigError`."""
    homes = []
    for text in named:
        folder = Path(text).absolute()
        inner = [folder / "kernels", folder / "share" / "jupyter" / "kernels", folder]
        home = next(
            (each for each in inner if os.path.isdir(each) and os.access(each, os.R_OK | os.X_OK)), None
        )
        if home is None:
            raise ConfigError(
                f"--from {text!r:.200} is no folder to read: name the old server's share/jupyter."
            )
        homes.append(home)
    return homes


def find_all(more: Sequence[Path] = ()) -> list[Found]:
    """Return the old kernelspecs and those already migrated, one for each name. `more` are further folders."""
    found: dict[str, Found] = {}
    migrated: dict[str, Found] = {}
    for home in dict.fromkeys([*search_path(), *more]):
        for folder in _list_folders(home):
            document, problem = _read(folder)
            if mark := _read_mark(document):
                is_edited = mark["digest"] != _digest(document)
                old = Found(name=folder.name, folder=Path(mark["source"]), place=folder, is_edited=is_edited)
                migrated.setdefault(folder.name.lower(), old)
            elif is_theirs(document) or (document is None and problem):
                found.setdefault(folder.name.lower(), Found(name=folder.name, folder=folder))
        for aside in sorted(home.parent.glob(f"*{_ASIDE}")):
            name = aside.name.removesuffix(
                _ASIDE
            )  # without a new one: a run was killed, or a person removed it
            if not os.path.lexists(home / name):
                found.setdefault(name.lower(), Found(name=name, folder=aside, place=home / name))
    return [each for _, each in sorted({**found, **migrated}.items())]


def find_named(name: str, more: Sequence[Path] = ()) -> Found:
    """Return the kernelspec of this name, or in the folder of this path. Raises `ConfigError`."""
    if os.sep in name or name in (".", ".."):
        folder = Path(name).absolute()
        found = [each for each in find_all([*more, folder.parent]) if folder in (each.folder, each.place)]
        found = found or [Found(name=folder.name, folder=folder)] * is_theirs(_read(folder)[0])
    else:
        found = [each for each in find_all(more) if each.name.lower() == name.lower()]
    if not found:
        raise ConfigError(
            f"There is no kernelspec of the three systems as {name!r:.80}: give its name, or its folder."
        )
    return found[0]


def choose_place(old: Found, home: Path | None) -> Path:
    """Return the folder of the new kernelspec. Raises `ConfigError` if Jupyter would find another one first.

    `home` is the folder that the user names. Otherwise it is the first of the user's folder, the environment's and the
    others that Jupyter searches before the old one and that can be written, or else the old one's own.
    """
    path, own = search_path(), old.folder.parent
    if old.place is not None:
        return old.place
    before = path[: path.index(own)] if own in path else path
    if home is None:
        mine = Path(paths.jupyter_data_dir()).absolute() / "kernels"
        choices = [each for each in dict.fromkeys((mine, *before)) if each in before and _can_write(each)]
        home = next(iter(choices), own)
    if home not in path and own not in path and home == own:
        raise ConfigError(f"You can write to no folder that Jupyter searches ({path[0]}, …): use --prefix.")
    if home == own and not (_can_write(own) and _can_write(own.parent)):
        raise ConfigError(
            f"Jupyter searches no folder before {own} that you can write to: run roost as its owner."
        )
    for earlier in path[: path.index(home)] if home in path else ():
        for folder in _list_folders(earlier):
            if folder.name.lower() == old.name.lower():
                raise ConfigError(f"Jupyter finds the kernelspec in {folder} first: move it away.")
    if os.path.lexists(home / old.name) and home != own:
        raise ConfigError(
            f"There is another kernelspec in {home / old.name}, which stays: move it away first."
        )
    return home / old.name


def write_new(old: Found, place: Path, document: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """Write a new kernelspec, whose folder appears complete. `settings` has the digests of files that it needs.

    Raises `ConfigError`.
    """
    aside = place.parent.parent / f"{old.name}{_ASIDE}"
    is_in_place = old.folder == place
    if is_in_place and os.path.lexists(aside):
        raise ConfigError(f"An earlier run has kept another kernelspec as {aside}: move it away first.")
    mark = {
        "source": str(aside if is_in_place else old.folder),
        "digest": _digest(document),
        "settings": settings,
    }
    document = {**document, "metadata": {**document["metadata"], _MARK: mark}}

    def make_way(folder: Path) -> None:
        if is_in_place:
            folder.rename(aside)

    try:
        write_kernelspec(
            place, document, list_resources(old.folder, most_bytes=_MOST_BYTES), make_way=make_way
        )
    except OSError as problem:
        what = f"{place} cannot be written ({problem.strerror or problem})"
        raise ConfigError(f"{what}: use --user, --sys-prefix or --prefix.") from None


def find_settings(home: Path) -> tuple[Path, list[Path]]:
    """Return the file of settings for kernelspecs in `home`, and the files that a service reads already."""
    beside = home.parent.parent.parent / "etc" / "jupyter"
    is_own = home.parent == Path(paths.jupyter_data_dir()).absolute() or home.parts[-3:-1] != (
        "share",
        "jupyter",
    )
    folder = Path(paths.jupyter_config_dir()) if is_own else beside
    there = [Path(each, name) for each in (str(folder), *paths.jupyter_config_path()) for name in _SETTINGS]
    return folder / _SETTINGS[0], [each for each in dict.fromkeys(there) if os.path.lexists(each)]


def write_settings(file: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Write a new file of settings, as a whole or not at all. Return its digest, for the marks.

    Raises `ConfigError`.
    """
    content = (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as written:
            try:
                written.write(content)
                written.flush()
            except BaseException:  # a service refuses to start with a part of it
                file.unlink(missing_ok=True)
                raise
    except OSError as problem:
        raise ConfigError(f"{file} cannot be written: {problem.strerror or problem}.") from None
    return {str(file): hashlib.sha256(content).hexdigest()}


def undo(old: Found) -> None:
    """Remove the new kernelspec, and put back the old one. Raises `ConfigError`."""
    assert old.place is not None
    if old.is_edited:
        place = old.place
        raise ConfigError(
            f"{place} has changed since the migration: run `roost kernelspec remove {place.name}`, then --undo again."
        )
    away = old.place.parent.parent / f"{old.name}.undone-{os.getpid()}"
    is_aside = old.folder.name.endswith(_ASIDE)
    if is_aside and not os.path.isdir(old.folder):
        raise ConfigError(
            f"{old.folder} is gone, so nothing can be put back: {old.place} stays. "
            f"`roost kernelspec remove {old.name}` removes it."
        )
    try:
        if os.path.lexists(old.place):
            old.place.rename(away)
        if is_aside:
            old.folder.rename(old.place)
        shutil.rmtree(away, ignore_errors=True)
    except OSError as problem:
        raise ConfigError(f"{old.place} cannot be removed: {problem.strerror or problem}.") from None


def list_settings(old: Found) -> Mapping[str, str]:
    """Return the files of settings that a migration has written for a kernelspec, with their digests."""
    found: Mapping[str, str] = (
        (_read_mark(_read(old.place)[0]) or {}).get("settings", {}) if old.place else {}
    )
    return found


def remove_settings(files: Mapping[str, str]) -> list[Path]:
    """Remove the files of settings that are unchanged. Return the files that stay."""
    kept = []
    for file, digest in files.items():
        path = Path(file)
        with suppress(OSError):
            if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                path.unlink()
            else:
                kept.append(path)
    return kept


def _list_folders(home: Path) -> Iterator[Path]:
    """Yield the folders of kernelspecs in `home`, sorted by name."""
    try:
        found = sorted(home.iterdir())
    except OSError:  # missing, or not readable for this user
        return
    yield from (each for each in found if os.path.lexists(each / "kernel.json"))


def _read(folder: Path) -> tuple[Any, str]:
    try:
        return read_document(folder)
    except OSError as problem:
        return None, str(problem)


def _read_mark(document: Any) -> dict[str, Any] | None:
    """Return the mark of a kernel.json; None if there is none, or one of another form."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    mark = metadata.get(_MARK) if isinstance(metadata, dict) else None
    if not isinstance(mark, dict) or not isinstance(mark.get("settings", {}), dict):
        return None
    return mark if all(isinstance(mark.get(name), str) for name in ("source", "digest")) else None


def _digest(document: Mapping[str, Any]) -> str:
    """Return the digest of a kernel.json, whatever its mark is."""
    metadata = {name: value for name, value in document["metadata"].items() if name != _MARK}
    text = json.dumps({**document, "metadata": metadata}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _can_write(folder: Path) -> bool:
    """True if this user can write to the folder, or make it."""
    there = next(each for each in (folder, *folder.parents) if os.path.exists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
