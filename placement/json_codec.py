"""Messages between frozen dataclasses and JSON values. roost builds no other objects from bytes that it has received.

`decode` refuses unknown and missing fields, wrong types, and numbers that are not finite.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_MOST = 2**63
_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class WireError(ValueError):
    """A message does not have the expected form. The text names the field and the reason."""


def encode(value: Any) -> Any:
    """Return the JSON values of dataclasses, mappings, sequences and plain values."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name)) for name in _plan(type(value))}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], value: Any, *, ignore_unknown: bool = False) -> T:
    """Build `cls` (a dataclass) from JSON values, or raise `WireError` with one sentence.

    `ignore_unknown` leaves out unknown fields at any depth: answers, events and files may be of another version.
    Requests stay strict: roost must not ignore a wish that it does not know.
    """
    return typing.cast(T, _decode(cls, value, cls.__name__, ignore_unknown))


def decode_arguments(function: Callable[..., Any], value: Any, where: str) -> dict[str, Any]:
    """Return the arguments for a function from JSON values, or raise `WireError` with one sentence about `where`."""
    return _decode_fields(function, value, where, False)


@functools.lru_cache(maxsize=256)
def _plan(target: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field of a dataclass or parameter of a function, and whether it is required."""
    hints = typing.get_type_hints(target)
    return {
        name: (hints[name], each.default is inspect.Parameter.empty)
        for name, each in inspect.signature(target).parameters.items()
        if name in hints  # `self` is not
    }


def _decode(kind: Any, value: Any, where: str, lax: bool) -> Any:
    if kind is Any or (kind is type(value) and kind in (str, bool)):
        return value
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, where, lax)
    if origin is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise WireError(f"{where} must be one of {list(typing.get_args(kind))}, not {value!r:.80}")
    if origin in (tuple, list, frozenset, Sequence):
        if not isinstance(value, (list, tuple)):
            raise WireError(f"{where} must be a list, not {type(value).__name__}")
        item = typing.get_args(kind)[0]
        collect = tuple if origin is Sequence else origin
        return collect(_decode(item, element, f"{where}[{i}]", lax) for i, element in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise WireError(f"{where} must be an object, not {type(value).__name__}")
        item = typing.get_args(kind)[1]
        return {str(key): _decode(item, element, f"{where}.{key}", lax) for key, element in value.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, where, lax)
    return _decode_plain(kind, value, where)


def _decode_union(options: tuple[Any, ...], value: Any, where: str, lax: bool) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return _decode(option, value, where, lax)
            except WireError as problem:
                errors.append(problem)
    raise errors[0]


def _decode_dataclass(cls: type, value: Any, where: str, lax: bool) -> Any:
    values = _decode_fields(cls, value, where, lax)
    try:
        return cls(**values)
    except (TypeError, ValueError) as problem:
        raise WireError(f"{where}: {problem}") from problem


def _decode_fields(target: Callable[..., Any], value: Any, where: str, lax: bool) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise WireError(f"{where} must be an object, not {type(value).__name__}")
    plan = _plan(target)
    values = {}
    for name, item in value.items():
        if name not in plan:
            if lax:
                continue
            raise WireError(f"{where} has no field {name!r:.60}; it has {', '.join(plan)}")
        values[name] = _decode(plan[name][0], item, f"{where}.{name}", lax)
    for name, (_, is_required) in plan.items():
        if is_required and name not in values:
            raise WireError(f"{where} lacks the field {name!r}")
    return values


def _decode_plain(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, int) and not -_MOST <= value < _MOST:
        raise WireError(
            f"{where} must be a number below 2**63, not one of {len(f'{value:x}')} hexadecimal digits"
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of numbers
    if type(value) is not kind:
        raise WireError(f"{where} must be {_KINDS.get(kind, kind)}, not {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise WireError(f"{where} must be a finite number, not {value}")
    return value
