"""Messages as frozen dataclasses: what may cross a socket, and the check that it is well formed.

`encode` turns a dataclass into JSON-ready values; `decode` builds it again and refuses what does not
fit: unknown or missing fields, wrong types, numbers that are not finite. Nothing else is ever made
from bytes that came over a wire.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class WireError(ValueError):
    """A message that does not have the form it should; the text says which field and why."""


def encode(value: Any) -> Any:
    """JSON-ready form of dataclasses, mappings, sequences and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], value: Any) -> T:
    """Build `cls` (a dataclass) from JSON values, or raise `WireError` with one sentence."""
    return typing.cast(T, _decode(cls, value, cls.__name__))


@functools.lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, where)
    if origin is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise WireError(f"{where} must be one of {list(typing.get_args(kind))}, not {value!r:.80}")
    if origin in (tuple, list, frozenset):
        if not isinstance(value, (list, tuple)):
            raise WireError(f"{where} must be a list, not {type(value).__name__}")
        item = typing.get_args(kind)[0]
        return origin(_decode(item, element, f"{where}[{i}]") for i, element in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise WireError(f"{where} must be an object, not {type(value).__name__}")
        item = typing.get_args(kind)[1]
        return {_text(key, where): _decode(item, element, f"{where}.{key}") for key, element in value.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, where)
    return _decode_plain(kind, value, where)


def _decode_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    error: WireError | None = None
    for option in options:
        try:
            return _decode(option, value, where)
        except WireError as problem:
            error = error or problem
    raise error or WireError(f"{where} must not be set")


def _decode_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise WireError(f"{where} must be an object, not {type(value).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise WireError(f"{where} has no field {unknown[0]!r}; it has {', '.join(fields)}")
    hints = _hints(cls)
    found = {name: _decode(hints[name], value[name], f"{where}.{name}") for name in fields if name in value}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in found:
            raise WireError(f"{where} lacks the field {name!r}")
    try:
        return cls(**found)
    except (TypeError, ValueError) as problem:
        raise WireError(f"{where}: {problem}") from problem


def _decode_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is object:
        return value
    if type(value) is not kind:
        raise WireError(f"{where} must be {kind.__name__}, not {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise WireError(f"{where} must be a finite number, not {value}")
    return value


def _text(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise WireError(f"{where} must have text keys")
    return key
