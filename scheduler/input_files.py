"""Files of users and operators, which may be links: a `ConfigError` of one sentence for each that cannot be used."""

from __future__ import annotations

import os
from typing import Any

from roost.launchers.daemon.file_input import UnfitFile as UnfitFile
from roost.launchers.daemon.file_input import open_checked, read_content
from roost.launchers.daemon.file_input import read_document as read_document
from roost.launchers.daemon.file_input import show_path as show_path
from roost.launchers.daemon.json_text import TooDeep as TooDeep
from roost.launchers.daemon.json_text import UnfitText as UnfitText
from roost.launchers.daemon.json_text import check_depth as check_depth
from roost.launchers.daemon.json_text import parse_json as parse_json

from .errors import ConfigError

MOST_INPUT_BYTES = 16 << 20
"""The greatest size of a file of settings, a policy, a pod template or a kernelspec."""
_MOST_ITEMS = 100_000
"""At most this many items has a document in YAML, whose parts can be named many times."""

Path = str | os.PathLike[str]


def open_input(path: Path, *, most_bytes: int | None = None) -> int:
    """Open a regular file and return its descriptor. Raises `ConfigError`."""
    try:
        return open_checked(path, most_bytes=most_bytes, may_be_link=True)
    except (OSError, UnfitFile) as problem:
        raise _refuse(path, problem) from None


def check_input(path: Path) -> None:
    """Raise `ConfigError` unless `path` is a regular file of a size that a library can read."""
    os.close(open_input(path, most_bytes=MOST_INPUT_BYTES))


def read_input(path: Path, *, most_bytes: int = MOST_INPUT_BYTES) -> bytes:
    """Return the content of a file. Raises `ConfigError`."""
    try:
        return read_content(path, most_bytes=most_bytes, may_be_link=True)
    except (OSError, UnfitFile) as problem:
        raise _refuse(path, problem) from None


def read_input_text(path: Path) -> str:
    """Return the text of a file in UTF-8. Raises `ConfigError`."""
    try:
        return read_input(path).decode()
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{show_path(path)} is not UTF-8 (byte {problem.start}).") from None


def read_input_json(path: Path, *, most_bytes: int = MOST_INPUT_BYTES) -> Any:
    """Return the JSON value in a file. Raises `ConfigError`."""
    content = read_input(path, most_bytes=most_bytes)
    try:
        return parse_json(content)
    except UnfitText as problem:
        raise ConfigError(f"{show_path(path)} {problem}.") from None


def read_input_yaml(path: Path, *, is_json: bool = True) -> Any:
    """Return the value of a file in YAML. If `is_json`, it consists of JSON's own types. Raises `ConfigError`."""
    return parse_yaml(read_input_text(path), show_path(path), is_json=is_json)


def parse_yaml(text: str, name: str, *, is_json: bool = True) -> Any:
    """Return the value of a text in YAML, which `name` names in errors. See `read_input_yaml`."""
    import yaml

    try:
        value = yaml.safe_load(text)
        check_depth(value, most_items=_MOST_ITEMS)
        if is_json:
            _check_types(value)
        return value
    except RecursionError:
        raise ConfigError(f"{name} has too many levels.") from None
    except UnfitText as problem:
        raise ConfigError(f"{name} {problem}.") from None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, yaml.YAMLError) as problem:
        reason = " ".join(str(problem).split())[:500] or type(problem).__name__
        raise ConfigError(f"{name} is not YAML: {reason}.") from None


def _check_types(value: Any) -> None:
    """Raise `UnfitText` for a value that JSON does not have, such as a date."""
    rest = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, dict):
            if wrong := next((key for key in each if not isinstance(key, str)), None):
                raise UnfitText(f"has the key {wrong!r:.40}, which is no text: put it in quotes")
            rest += each.values()
        elif isinstance(each, list):
            rest += each
        elif each is not None and not isinstance(each, (str, int, float)):
            raise UnfitText(f"has the value {str(each)!r:.40}, which JSON does not have: put it in quotes")


def _refuse(path: Path, problem: OSError | UnfitFile) -> ConfigError:
    if isinstance(problem, UnfitFile):
        return ConfigError(f"{problem}.")
    return ConfigError(f"{show_path(path)} cannot be read: {problem.strerror}.")
