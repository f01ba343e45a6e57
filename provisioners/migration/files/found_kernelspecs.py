"""Finds kernelspecs of the three systems, in the folders that Jupyter searches and in others that are named."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from roost.provisioners.kernel_json import read_document
from roost.provisioners.kernelspecs import check_kernel_name
from roost.provisioners.migration import is_theirs
from roost.scheduler.errors import ConfigError

from .mark import read_mark

ASIDE = "kernels-before-roost"
"""The folder beside `kernels` that holds the old kernelspecs whose places the new ones have taken."""
_NAME = re.compile(r"[A-Za-z0-9._-]+")
"""The names of kernelspecs that Jupyter takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKernelspec:
    """A kernelspec of one of the three systems."""

    name: str
    """The name of its folder, as it is spelled there."""
    folder: Path

    @property
    def home(self) -> Path:
        """The folder of kernelspecs that it is in, or was in before it was put aside."""
        parent = self.folder.parent
        return parent.with_name("kernels") if parent.name == ASIDE else parent


def search_path() -> list[Path]:
    """Return the folders of kernelspecs that Jupyter searches, in its order."""
    return [Path(folder).absolute() for folder in KernelSpecManager().kernel_dirs]


def find_named(name: str, more: Sequence[Path] = ()) -> FoundKernelspec | None:
    """Return the kernelspec of this name, or in the folder of this path. None if it has moved and its old one is gone.

    `more` are further folders of kernelspecs. Raises `ConfigError` if there is none, or if it is none of the systems.
    """
    if os.sep in name or name in (".", ".."):
        return _take_folder(Path(name).absolute())
    found = [old for old in _list_all(more) if old.name.lower() == name.lower()]
    if not found:
        raise ConfigError(f"There is no kernelspec {name!r:.80}: give its name, or the path of its folder.")
    kinds = [(old, _judge(old.folder)) for old in found]
    for wanted in ("theirs", "malformed"):
        if match := next((old for old, kind in kinds if kind == wanted), None):
            return match
    if any(kind == "migrated" for _, kind in kinds):
        return None
    raise _refuse(found[0].folder)


def find_all(more: Sequence[Path] = ()) -> list[FoundKernelspec]:
    """Return every kernelspec of the three systems, and every unreadable one, one for each name."""
    found: dict[str, tuple[FoundKernelspec, str]] = {}
    for old in _list_all(more):
        kind, key = _judge(old.folder), old.name.lower()
        if kind == "theirs" and found.get(key, (old, ""))[1] != "theirs":
            found[key] = (old, kind)
        else:
            found.setdefault(key, (old, kind))
    return [old for _, (old, kind) in sorted(found.items()) if kind in ("theirs", "malformed")]


def read_folders(named: Iterable[str]) -> list[Path]:
    """Return the folders of kernelspecs that `--from` names: each is one, or holds `kernels`. Raises `ConfigError`."""
    folders = []
    for text in named:
        folder = Path(text).absolute()
        if not folder.is_dir():
            raise ConfigError(
                f"--from {text!r:.200} is no folder: name the old server's folder share/jupyter."
            )
        inner = [folder / "kernels", folder / "share" / "jupyter" / "kernels", folder]
        try:
            found = next(each for each in inner if each.is_dir())
            os.listdir(found)
        except OSError as problem:
            raise ConfigError(
                f"--from {text!r:.200} cannot be read: {problem.strerror or problem}."
            ) from None
        folders.append(found)
    return folders


def list_folders(home: Path) -> Iterator[Path]:
    """Yield the folders of kernelspecs in `home`, sorted by name."""
    try:
        found = sorted(home.iterdir())
    except OSError:  # missing, or not readable for this user
        return
    yield from (each for each in found if os.path.lexists(each / "kernel.json"))


def _list_all(more: Sequence[Path]) -> Iterator[FoundKernelspec]:
    """Yield all kernelspecs in Jupyter's order. In each folder, kernelspecs that were put aside come last.

    A folder such as `python (copy)` is left out, because no server of Jupyter takes its name.
    """
    for home in [*search_path(), *more]:
        for place in (home, home.with_name(ASIDE)):
            for each in list_folders(place):
                if _NAME.fullmatch(each.name):
                    yield FoundKernelspec(name=each.name, folder=each)


def _take_folder(folder: Path) -> FoundKernelspec | None:
    if not os.path.lexists(folder / "kernel.json"):
        raise ConfigError(f"There is no kernel.json in {folder}: give the path of a kernelspec's folder.")
    check_kernel_name(folder.name)
    kind = _judge(folder)
    if kind == "other":
        raise _refuse(folder)
    return None if kind == "migrated" else FoundKernelspec(name=folder.name, folder=folder)


def _refuse(folder: Path) -> ConfigError:
    systems = "Enterprise Gateway, Gateway Provisioners and Remote Provisioners"
    return ConfigError(f"The kernelspec in {folder} is none of {systems}: leave it as it is.")


def _judge(folder: Path) -> str:
    """Return the kind of a kernelspec: `theirs`, `migrated`, `malformed` or `other`."""
    document: Any = None
    with suppress(OSError):  # the translation reports it
        document, _ = read_document(folder)
    if not isinstance(document, dict):
        return "malformed"
    if read_mark(document) is not None:
        return "migrated"
    return "theirs" if is_theirs(document) else "other"
