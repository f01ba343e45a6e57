"""The operator's lists of what kernels may ask for: patterns of names, and ranges of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from roost.scheduler.errors import ConfigError

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
"""A name of a namespace (RFC 1123)."""
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def check_name(option: str, value: str | None, patterns: Iterable[str]) -> None:
    """Raise `ConfigError` if no pattern (`fnmatch`) matches the value of a kernel's option. No value is allowed."""
    if value and not matches(value, patterns):
        raise refuse(option, value, patterns)


def check_namespace(value: str | None, patterns: Iterable[str]) -> None:
    """Raise `ConfigError` unless this is a name that a namespace can have, and a pattern matches it."""
    check_name("namespace", value, patterns)
    if value and not _LABEL.fullmatch(value):
        raise ConfigError(
            f"namespace={value!a:.80} is no name of a namespace: small letters, digits and hyphens."
        )


def is_pattern(name: str) -> bool:
    return any(each in name for each in "*?[")


def check_number(option: str, value: int | None, ranges: Iterable[str]) -> None:
    """Raise `ConfigError` if no range has the value of a kernel's option. No value is allowed."""
    if value is not None and not any(low <= value <= high for low, high in map(parse_range, ranges)):
        raise refuse(option, value, ranges)


def matches(value: str, patterns: Iterable[str]) -> bool:
    """True if one of the patterns matches the value."""
    return any(fnmatchcase(value, pattern) for pattern in patterns if pattern)


def refuse(option: str, value: str | int, allowed: Iterable[str]) -> ConfigError:
    """Return the error for a value that the operator does not allow."""
    names = ", ".join(filter(None, allowed)) or "none"
    return ConfigError(f"{option} = {value!r:.80} is not allowed here; the operator allows {names}.")


def parse_range(text: str) -> tuple[int, int]:
    """Return the first and the last number of a range such as `1000-1999`, or of `1000`. Raises `ValueError`."""
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r:.40} is no range of numbers: write '1000', or '1000-1999'.")
    return int(found[1]), int(found[2] or found[1])
