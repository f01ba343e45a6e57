"""Reads the values of the three systems: Kubernetes' quantities, the JVM's memory, lists, URLs, yes or no."""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")
_JVM = {"": 2.0**20, "b": 1.0, "k": 2.0**10, "m": 2.0**20, "g": 2.0**30, "t": 2.0**40, "p": 2.0**50}
_GIB = 1 << 30
_MOST_BYTES = 1 << 60
_MOST_CPUS = 1e6


def read_quantity(value: object) -> float:
    """Return one of Kubernetes' quantities. Raises `ValueError`.

    >>> read_quantity("2500m"), read_quantity("6Gi")
    (2.5, 6442450944.0)
    """
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None or match.group(2) not in _UNITS or isinstance(value, bool):
        raise ValueError("it is no amount")
    return float(match.group(1)) * _UNITS[match.group(2)]


def read_cpus(value: object) -> float:
    """Return a number of CPUs above 0. Raises `ValueError`."""
    cpus = read_quantity(value)
    if not 0 < cpus < _MOST_CPUS:
        raise ValueError("it is no number of CPUs")
    return int(cpus) if cpus == int(cpus) else round(cpus, 3)


def read_memory(value: object, *, is_jvm: bool = False) -> int:
    """Return bytes. `is_jvm`: Spark's notation, in which a bare number is in MiB. Raises `ValueError`."""
    if is_jvm:
        match = _QUANTITY.fullmatch(str(value).strip())
        unit = match.group(2).lower().removesuffix("ib") if match else "?"
        unit = unit.removesuffix("b") or unit
        if match is None or unit not in _JVM:
            raise ValueError("it is no amount of memory")
        size = float(match.group(1)) * _JVM[unit]
    else:
        size = read_quantity(value)
    if not (1 << 20) <= size <= _MOST_BYTES:
        raise ValueError("it is no amount of memory")
    return int(size)


def format_memory(size: int) -> str:
    """Return bytes as a kernelspec has them.

    >>> format_memory(6 << 30), format_memory(6_000_000_000)
    ('6GiB', '6000000000')
    """
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def round_up_to_gib(size: float) -> int:
    """Return bytes, rounded up to whole GiB."""
    return math.ceil(size / _GIB) * _GIB


def read_names(value: Any) -> list[str]:
    """Return the names in a list, a set or a text with commas or spaces.

    >>> read_names("bob, alice")
    ['bob', 'alice']
    """
    if isinstance(value, (list, tuple, set, frozenset)):
        found = [str(item).strip() for item in value]
    else:
        found = re.split(r"[,\s]+", str(value).strip().strip("[](){}").replace("'", "").replace('"', ""))
    return [name for name in found if name]


def read_bool(value: Any) -> bool:
    """Return the truth of a value or a text, as the three systems read their variables."""
    return str(value).strip().lower() in ("true", "1", "yes", "on")


def read_seconds(value: Any) -> float:
    """Return seconds above 0. Raises `ValueError`."""
    try:
        seconds = float(value)
    except (ValueError, TypeError, OverflowError):  # its text has the value, which may be a secret
        raise ValueError("it is no number of seconds") from None
    if isinstance(value, bool) or not (0 < seconds < 1e9):
        raise ValueError("it is no number of seconds")
    return int(seconds) if seconds == int(seconds) else seconds


def read_url(text: str) -> SplitResult:
    """Return the parts of a URL, all of them empty if the text is none."""
    try:
        return urlsplit(text)
    except ValueError:  # such as an IPv6 address without its end
        return urlsplit("")
