"""Checks of the fields of requests, nodes and devices. Errors are sentences for users."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .format import format_amount

_FIELDS = {"cpu": "cpus", "cpus": "cpus", "gpu": "gpus", "gpus": "gpus", "memory": "memory_bytes"}
"""The fields of a request, by the names that a cluster manager may use for these resources."""


NOTHING: dict[str, float] = {}
"""No custom resources. All requests and nodes share this object. Nobody writes to it."""
NOBODY: dict[str, int] = {}
"""No users. All nodes without kernels share this object. Nobody writes to it."""


Check = Callable[[str, Any], Any]
"""Takes the name and the value of a field. Returns the value to keep, or raises ``ValueError``."""


def check_fields(checked: object, checks: Mapping[str, Check]) -> None:
    """Check and normalize the fields of a frozen dataclass that ``checks`` names. Called in its ``__post_init__``."""
    for name, check in checks.items():
        value = getattr(checked, name)
        kept = check(name, value)
        if kept is not value:
            object.__setattr__(checked, name, kept)


def if_known(check: Check) -> Check:
    """Return a check that accepts None, and checks any other value by ``check``."""
    return lambda name, value: None if value is None else check(name, value)


def check_number(name: str, value: object) -> float:
    """Return the value as a float. Raise ``ValueError`` unless it is a finite number that is not negative."""
    if type(value) is float and 0.0 <= value < math.inf:  # the usual case, which is checked millions of times
        return value or 0.0  # not -0.0
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {number}.")
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {format_amount(number)}. Use 0 to ask for none.")
    return number + 0.0


def check_whole(name: str, value: object) -> int:
    """Return the value as an int. Raise ``ValueError`` unless it is a whole number from 0 to 2**63 - 1."""
    if type(value) is int and 0 <= value < 2**63:
        return value
    number = check_number(name, value)
    if number != int(number) or number >= 2**63:
        raise ValueError(f"{name} must be a whole number below 2**63; got {value!r}.")
    return int(value)  # type: ignore[call-overload,no-any-return]


def check_names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of names; got {value!r}.")
    names = tuple(value)
    if not all(isinstance(item, str) and item.strip() for item in names):
        raise ValueError(f"{name} must be a list of names, each of them text; got {list(names)!r}.")
    return names


def check_labels(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must map names to values, for example {{'zone': 'a'}}; got {value!r}.")
    if not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ValueError(f"{name} must map text to text; got {dict(value)!r}.")
    return dict(value)


def check_amounts(name: str, value: object) -> dict[str, float]:
    """Return a checked copy of a mapping from names to amounts, or ``NOTHING`` if it is empty."""
    if value is NOTHING:
        return NOTHING
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must map names to amounts, for example {{'licence': 1}}; got {value!r}.")
    if not all(isinstance(key, str) and key.strip() for key in value):
        raise ValueError(f"{name} must have names that are text; got {dict(value)!r}.")
    return {key: check_number(f"{name} {key}", item) for key, item in value.items()} or NOTHING


def check_counts(name: str, value: object) -> dict[str, int]:
    """Return a checked copy of a mapping from names to whole numbers, without zeros. ``NOBODY`` if nothing is left."""
    if value is NOBODY:
        return NOBODY
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must map names to whole numbers, for example {{'ada': 1}}; got {value!r}.")
    counts = {key: check_whole(f"{name} {key}", item) for key, item in value.items()}
    return {key: count for key, count in counts.items() if count} or NOBODY


def check_resources(name: str, value: object) -> dict[str, float]:
    """Return custom resources as a dict. Raise `ValueError` for an amount of 0, and for CPUs, memory and GPUs."""
    amounts = check_amounts(name, value)
    for resource, number in amounts.items():
        if resource.lower() in _FIELDS:
            raise ValueError(f"{name} must not name {resource}: ask for it with {_FIELDS[resource.lower()]}.")
        if not number:
            raise ValueError(f"{name} {resource} must be above 0; leave it out to ask for none.")
    return amounts
