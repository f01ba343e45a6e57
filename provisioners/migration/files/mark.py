"""The mark in a kernelspec that a migration has written. It tells whether a person has changed the kernelspec since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roost.provisioners.kernel_json import MIGRATION, read_document
from roost.provisioners.kernel_resources import list_resources
from roost.scheduler.errors import ConfigError

MOST_BYTES = 1 << 30
"""At most this many bytes are in all files of an old kernelspec together: those of Scala bring their kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The facts that a migration leaves in a kernelspec for later runs and for `--undo`."""

    source: str
    """The folder of the old kernelspec."""
    waits_for: str = ""
    """The backend that must be installed first, or does not exist yet; empty: none."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The settings in `jupyter_roost_config` that the kernelspec needs."""
    made: tuple[str, ...] = ()
    """The folders that this migration and earlier ones have made."""
    digest: str = ""
    """The digest of everything else in the kernelspec's folder."""


def add_mark(document: Mapping[str, Any], mark: Mark, resources: Mapping[str, Path]) -> dict[str, Any]:
    """Return a kernel.json with the mark, whose digest covers the document and the files. Raises `ConfigError`."""
    values = {
        "source": mark.source,
        **({"waits_for": mark.waits_for} if mark.waits_for else {}),
        **({"settings": mark.settings} if mark.settings else {}),
        **({"made": list(mark.made)} if mark.made else {}),
    }
    marked = {**document, "metadata": {**document.get("metadata", {}), MIGRATION: values}}
    values["digest"] = _digest(marked, resources)
    return marked


def read_mark(document: Any) -> Mark | None:
    """Return the mark of a kernel.json; None if there is none, or one of another form."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    values = metadata.get(MIGRATION) if isinstance(metadata, dict) else None
    if not isinstance(values, dict):
        return None
    texts = {name: values.get(name, "") for name in ("source", "waits_for", "digest")}
    settings, made = values.get("settings", {}), values.get("made", [])
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(made, list):
        return None
    if not isinstance(settings, dict) or not all(isinstance(section, dict) for section in settings.values()):
        return None
    return Mark(settings=settings, made=tuple(map(str, made)), **texts)


def read_marked(folder: Path) -> tuple[dict[str, Any], Mark] | None:
    """Return the kernel.json of a folder with its mark. None if there is no good one, or if it has no mark."""
    try:
        document, _ = read_document(folder)
    except OSError:
        return None
    mark = read_mark(document)
    return None if mark is None else (document, mark)


def is_unchanged(folder: Path, document: Mapping[str, Any], mark: Mark) -> bool:
    """True if the folder holds exactly what the migration has written."""
    try:
        return _digest(document, list_resources(folder, most_bytes=MOST_BYTES)) == mark.digest
    except ConfigError:  # a link or a file that no migration writes
        return False


def remove_mark(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kernel.json without its mark."""
    metadata = {name: value for name, value in document["metadata"].items() if name != MIGRATION}
    return {**document, "metadata": metadata}


def digest_files(resources: Mapping[str, Path]) -> dict[str, str]:
    """Return the digests of files by their names. Raises `ConfigError` for a file that cannot be read."""
    try:
        return {name: _digest_file(path) for name, path in resources.items()}
    except OSError as problem:
        raise ConfigError(f"{problem.filename} cannot be read: {problem.strerror}.") from None


def _digest(document: Mapping[str, Any], resources: Mapping[str, Path]) -> str:
    """Return the digest of a kernelspec, whatever digest its mark holds."""
    mark = {name: value for name, value in document["metadata"][MIGRATION].items() if name != "digest"}
    content = {**document, "metadata": {**document["metadata"], MIGRATION: mark}}
    text = json.dumps([content, digest_files(resources)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
