"""Reads a kernelspec of the three systems: its document, its stanza, and every place that must get a line."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roost.provisioners.kernel_json import find_wrong_env
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import UnfitText, parse_json, read_input_text, show_path

from .classes import PROVISIONERS, Kind, find_class, guess_kind, is_their_module
from .command import has_handshake

_FILE = "kernel.json"
_PROXY, _PROVISIONER = "process_proxy", "kernel_provisioner"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stanza:
    """The part of a kernelspec that chooses the class, and its options.

    `place` is where it stands, such as `metadata.process_proxy`. `class_key` is the key of the class in it.
    """

    place: str
    class_key: str
    class_name: str
    kind: Kind
    is_known: bool
    """False if the class is not theirs, so that `kind` is a guess."""
    config: Mapping[str, Any]
    document: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OldKernelspec:
    """A kernelspec as it was read. `stanza` is None for a plain one."""

    name: str
    folder: Path
    document: Mapping[str, Any]
    argv: tuple[str, ...]
    env: Mapping[str, str]
    metadata: Mapping[str, Any]
    stanza: Stanza | None


def is_theirs(document: Any) -> bool:
    """True if a kernel.json belongs to Enterprise Gateway, Gateway Provisioners or Remote Provisioners.

    It has their stanza, or its command has their launcher's options. `document` may have any type.
    """
    if not isinstance(document, dict):
        return False
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if _PROXY in document or _PROXY in metadata:
        return True
    own = metadata.get(_PROVISIONER)
    name = own.get("provisioner_name") if isinstance(own, dict) else None
    if name == "roost":
        return False
    if isinstance(name, str) and PROVISIONERS.get(name, "local") != "local":
        return True
    argv = document.get("argv")
    return isinstance(argv, list) and has_handshake([part for part in argv if isinstance(part, str)])


def read_kernelspec(folder: Path) -> OldKernelspec:
    """Return the kernelspec in `folder`.

    Raises `ConfigError`, with the file, line and column, if it is no JSON object or has wrong types.
    """
    path = folder / _FILE
    text = read_input_text(path)
    try:
        document = parse_json(text)
    except UnfitText as problem:
        raise ConfigError(f"{show_path(path)} {problem}.") from None
    key, wrong = _find_wrong(document)
    if twice := "" if wrong else _find_twice(text):
        key, wrong = twice, "a key is there twice, so that one of both would be lost"
    if wrong:
        line, column = _locate(text, key)
        raise ConfigError(f"{show_path(path)}, line {line} column {column}: {wrong}.")
    metadata = document.get("metadata") or {}
    return OldKernelspec(
        name=folder.name,
        folder=folder,
        document=document,
        argv=tuple(document["argv"]),
        env=document.get("env") or {},
        metadata=metadata,
        stanza=_read_stanza(document, metadata),
    )


def list_places(document: Mapping[str, Any]) -> Iterator[str]:
    """Return every place of a kernel.json that must get a line of the report.

    These are the keys of the document, of its metadata, and of a stanza with its options, and each variable. The
    options in the command have their own lines.
    """
    for key, value in document.items():
        if key == "env":
            yield from (f"env {name}" for name in value or {})
        elif key == "metadata":
            for inner, part in (value or {}).items():
                yield from _list_stanza(f"metadata.{inner}", inner, part)
        else:
            yield from _list_stanza(key, key, value)


def _list_stanza(place: str, key: str, value: Any) -> Iterator[str]:
    if key not in (_PROXY, _PROVISIONER) or not isinstance(value, dict):
        yield place
        return
    for inner, part in value.items():
        if inner == "config" and isinstance(part, dict):
            yield from (f"{place}.config.{option}" for option in part)
        else:
            yield f"{place}.{inner}"


def _read_stanza(document: Mapping[str, Any], metadata: Mapping[str, Any]) -> Stanza | None:
    """Return the stanza that counts: one with a known class first, and jupyter_client's own provisioner last."""
    found = []
    for place, part, key in (
        ("metadata.kernel_provisioner", metadata.get(_PROVISIONER), "provisioner_name"),
        ("metadata.process_proxy", metadata.get(_PROXY), "class_name"),
        ("process_proxy", document.get(_PROXY), "class_name"),
    ):
        if part is not None:
            found.append(_to_stanza(place, part, key))
    found.sort(key=lambda stanza: (not stanza.is_known, stanza.class_name == "local-provisioner"))
    return found[0] if found else None


def _to_stanza(place: str, part: Mapping[str, Any], key: str) -> Stanza:
    name, config = str(part.get(key, "")), part.get("config") or {}
    kind = PROVISIONERS.get(name) if key == "provisioner_name" else find_class(name or "LocalProcessProxy")
    is_known = kind is not None and (key == "provisioner_name" or is_their_module(name))
    return Stanza(
        place=place,
        class_key=key,
        class_name=name,
        kind=kind or guess_kind(name, dict(config)),
        is_known=is_known,
        config=config,
        document=part,
    )


def _find_wrong(document: Any) -> tuple[str, str]:
    """Return the key with a wrong type, and the defect as a clause; empty texts if there is none."""
    if not isinstance(document, dict):
        return "", "the document is not an object"
    argv = document.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
        return "argv", "argv is missing, empty or not a list of texts"
    if wrong := find_wrong_env(_or_empty(document.get("env"))):
        return "env", wrong
    for name in ("display_name", "language"):
        if not isinstance(document.get(name, ""), str):
            return name, f"{name} is not a text"
    metadata = _or_empty(document.get("metadata"))
    if not isinstance(metadata, dict):
        return "metadata", "metadata is not an object"
    for holder, place in ((document, ""), (metadata, "metadata.")):
        for key, of_class in ((_PROXY, "class_name"), (_PROVISIONER, "provisioner_name")):
            if wrong := _find_wrong_stanza(holder.get(key), of_class):
                return key, f"{place}{key}{wrong}"
    return "", ""


def _find_wrong_stanza(part: Any, of_class: str) -> str:
    if part is None:
        return ""
    if not isinstance(part, dict):
        return " is not an object"
    if not isinstance(part.get(of_class, ""), str):
        return f".{of_class} is not a text"
    return "" if isinstance(_or_empty(part.get("config")), dict) else ".config is not an object"


def _or_empty(value: Any) -> Any:
    """Return an empty object for null, as for a missing value."""
    return {} if value is None else value


def _find_twice(text: str) -> str:
    """Return a key that one object of a JSON text has twice; empty if there is none."""
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        found.extend(key for key in keys if keys.count(key) > 1)

    json.loads(text, object_pairs_hook=check)
    return found[0] if found else ""


def _locate(text: str, key: str) -> tuple[int, int]:
    """Return the line and the column of a key in a JSON text, from 1."""
    match = re.search(rf'"{re.escape(key)}"\s*:', text) if key else None
    at = match.start() if match else 0
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
