"""The volumes that a kernel asks for, as users of docker write them, and the operator's list of what they may be.

volumes = ["/data/sets:/data:ro", "results:/results"]     a folder of this machine, and a volume of the engine

Here the words alone are checked. `mounts` checks what a folder really is, just before the engine gets it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from roost.scheduler.errors import ConfigError

SYSTEM_FOLDERS = ("/dev", "/proc", "/sys")
"""Folders of this machine that no operator can allow."""
_MOST, _LONGEST = 32, 1024
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,200}", re.ASCII)
_PATTERN = re.compile(r"[A-Za-z0-9*?\[][\w.*?!\[\]-]{0,200}", re.ASCII)
_OWN_NAMES = "roost-"
"""The beginning of the names of roost's own volumes."""
_OWN_TARGETS = (*SYSTEM_FOLDERS, "/roost", "/tmp")
"""Folders of the container with files of the system or of roost's agent."""
_SETTING = "c.RoostDockerBackend.allowed_volumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A folder of this machine or a volume of the engine, and its place in the container."""

    source: str
    """An absolute path without `..`, or the name of a volume of the engine."""
    target: str
    """An absolute path without `..`."""
    is_writable: bool

    @property
    def is_folder(self) -> bool:
        """True for a folder of this machine."""
        return self.source.startswith("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedVolume:
    """An entry of the operator's list: a folder with all folders in it, or a pattern of names (fnmatch)."""

    source: str
    is_writable: bool

    def describe(self) -> str:
        return self.source if self.is_writable else f"{self.source} (read only)"


def parse_allowed(text: str) -> AllowedVolume:
    """Return an entry such as `/data/sets`, `/scratch:rw` or `team-*:rw`. Without `:rw` it is read only.

    Raises `ValueError` with a sentence.

    >>> parse_allowed("/scratch/:rw")
    AllowedVolume(source='/scratch', is_writable=True)
    """
    source, _, mode = text.partition(":")
    if mode not in ("", "ro", "rw") or not (source.startswith("/") or _PATTERN.fullmatch(source)):
        raise ValueError(
            f"{text!r:.80} is no folder and no name of a volume: write '/data/sets', '/scratch:rw' or 'team-*'."
        )
    if source.startswith("/"):
        source = _normalize(source)
        if not source or source == "/" or any(is_within(source, folder) for folder in SYSTEM_FOLDERS):
            raise ValueError(f"{text!r:.80} cannot be allowed: name a folder of data, without `..`.")
    return AllowedVolume(source=source, is_writable=mode == "rw")


def read_volumes(options: Mapping[str, Any]) -> list[Volume]:
    """Return the volumes in a request's options. Raises `ConfigError` for one that cannot be read or mounted."""
    texts = options.get("volumes") or []
    if len(texts) > _MOST:
        raise ConfigError(f"volumes has {len(texts)} entries: at most {_MOST} are possible.")
    volumes = [_read(text) for text in texts]
    targets = sorted(volume.target for volume in volumes)
    for target in targets:
        # The engine would make the inner folder in the outer one, as root.
        if sum(is_within(other, target) for other in targets) > 1:
            raise ConfigError(
                f"volumes has two entries in {target!r:.80}: mount each in a folder apart from the others."
            )
    return volumes


def check_volumes(options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise `ConfigError` for volumes that cannot be read, or that no entry of `allowed` covers."""
    entries = [parse_allowed(text) for text in allowed]
    for volume in read_volumes(options):
        covers = [entry for entry in entries if _covers(entry, volume)]
        check_entries(volume, covers, entries)


def check_entries(
    volume: Volume, covers: Sequence[AllowedVolume], entries: Iterable[AllowedVolume], seen: str = ""
) -> None:
    """Raise `ConfigError` unless one of the entries that cover a volume allows it.

    `seen` is the real path of the volume's folder, if that differs.
    """
    is_really = f", which is really {seen!r:.200}," if seen else ""
    if not covers:
        known = ", ".join(entry.describe() for entry in entries) or "none"
        raise ConfigError(
            f"the volume {volume.source!r:.200}{is_really} is not allowed here: the operator allows {known} "
            f"({_SETTING})."
        )
    if volume.is_writable and not any(entry.is_writable for entry in covers):
        raise ConfigError(
            f"the volume {volume.source!r:.200}{is_really} may only be read here: write :ro behind its target."
        )


def is_within(path: str, folder: str) -> bool:
    """True if a normalized absolute path is `folder` or in it.

    >>> is_within("/data/sets", "/data"), is_within("/database", "/data"), is_within("/data", "/")
    (True, False, True)
    """
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _covers(entry: AllowedVolume, volume: Volume) -> bool:
    if volume.is_folder:
        return entry.source.startswith("/") and is_within(volume.source, entry.source)
    return not entry.source.startswith("/") and fnmatchcase(volume.source, entry.source)


def _read(text: str) -> Volume:
    source, *rest = text.split(":")
    if len(text) > _LONGEST or not text.isprintable() or len(rest) not in (1, 2) or rest[1:] not in _MODES:
        raise ConfigError(
            f"volumes = {text!r:.80} must be SOURCE:TARGET or SOURCE:TARGET:ro, as in /data/sets:/data:ro."
        )
    target = _normalize(rest[0])
    if not target:
        raise ConfigError(
            f"volumes = {text!r:.80} must name a target from / on, without `..`, such as /data."
        )
    if target == "/" or any(is_within(target, folder) for folder in _OWN_TARGETS):
        raise ConfigError(
            f"volumes = {text!r:.80} would hide files of the system or of roost: take another target, such as /data."
        )
    if source.startswith("/"):
        folder = _normalize(source)
        if not folder:
            raise ConfigError(f"volumes = {text!r:.80} must name its folder without `..`.")
        source = folder
    elif not _NAME.fullmatch(source) or source.startswith(_OWN_NAMES):
        raise ConfigError(
            f"volumes = {text!r:.80} must name a folder from / on, such as /data, or a volume of the engine."
        )
    return Volume(source=source, target=target, is_writable=rest[1:] != ["ro"])


def _normalize(path: str) -> str:
    """Return an absolute path in its shortest form; empty for any other path, and for one with `..`."""
    if not path.startswith("/") or ".." in path.split("/"):
        return ""
    return posixpath.normpath("/" + path.lstrip("/"))


_MODES: tuple[list[str], ...] = ([], ["ro"], ["rw"])
