"""The translation of frozen dataclasses to JSON values and back. roost builds no other objects from received bytes.

`decode` refuses unknown and missing fields, wrong types, and numbers that are not finite. The decoder
of a type is built once: a service that reads back its kernels decodes hundreds of thousands of values.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import marshal
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

Decoder = Callable[[Any, bool], Any]
"""A function that decodes a JSON value, or raises `_Mismatch`. The second argument is `ignore_unknown`."""

_MOST = 2**63
_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_PLAIN = frozenset({str, int, float, bool, type(None)})
_SHARED: set[type] = set()
_MOST_SHARED_BYTES = 4_096


class WireError(ValueError):
    """A message does not have the expected form. The text names the field and the reason."""


class _Mismatch(Exception):
    """A value does not fit. `where` is the path to the value: each level puts its own part in front."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.where = ""


def encode(value: Any) -> Any:
    """Return the JSON values of dataclasses, mappings, sequences and plain values."""
    return _encode(value, False)


def encode_message(value: Any) -> Any:
    """Return the same as `encode`, without the fields that have their default value: `decode` fills in the default.

    For files, use `encode`: another version may have other defaults.
    """
    return _encode(value, True)


def _encode(value: Any, is_message: bool) -> Any:
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if kind is not dict:
        fields = _find_fields(kind)
        if fields is not None:
            return {
                name: item if type(item) in _PLAIN else _encode(item, is_message)
                for name, default in fields
                if (item := getattr(value, name)) != default or not is_message
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [_encode(item, is_message) for item in value]
        if not isinstance(value, Mapping):
            return value
    return {
        str(key): item if type(item) in _PLAIN else _encode(item, is_message) for key, item in value.items()
    }


def share_equal(cls: type[T]) -> type[T]:
    """Decorate a frozen dataclass, so that `decode` builds only one object for equal small values of it.

    This saves time and memory, because thousands of kernels have the same owner and the same request.
    """
    _SHARED.add(cls)
    return cls


def decode(cls: type[T], value: Any, *, ignore_unknown: bool = False) -> T:
    """Build `cls` (a dataclass) from JSON values, or raise `WireError` with one sentence.

    `ignore_unknown` leaves out unknown fields at any depth: answers, events and files may be of another version.
    Requests stay strict: roost must not ignore a wish that it does not know.
    """
    try:
        return typing.cast(T, _decode_dataclass(cls, value, ignore_unknown))
    except _Mismatch as problem:
        raise WireError(f"{cls.__name__}{problem.where}{problem}") from problem.__cause__


def decode_arguments(function: Callable[..., Any], value: Any, where: str) -> dict[str, Any]:
    """Return the arguments for a function from JSON values, or raise `WireError` with one sentence about `where`."""
    try:
        return _decode_fields(function, value, False)
    except _Mismatch as problem:
        raise WireError(f"{where}{problem.where}{problem}") from problem.__cause__


@functools.lru_cache(maxsize=256)
def _find_fields(kind: type) -> tuple[tuple[str, Any], ...] | None:
    """Return the names and defaults of a dataclass's fields, or None for another type."""
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple((field.name, _find_default(field)) for field in dataclasses.fields(kind) if field.init)


def _find_default(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default, or `MISSING`, which equals no value, if the field has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.lru_cache(maxsize=256)
def _plan(target: Callable[..., Any]) -> dict[str, tuple[Decoder, bool]]:
    """Return the decoder of each field of a dataclass or parameter of a function, and whether it is required."""
    hints = typing.get_type_hints(target)
    return {
        name: (_build_decoder(hints[name]), each.default is inspect.Parameter.empty)
        for name, each in inspect.signature(target).parameters.items()
        if name in hints  # `self` is not
    }


def _build_decoder(kind: Any) -> Decoder:
    if kind is Any:
        return lambda value, lax: value
    arguments, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [_build_decoder(option) for option in arguments if option is not type(None)]
        return functools.partial(_decode_union, options, type(None) in arguments)
    if origin is typing.Literal:
        return functools.partial(_decode_literal, arguments)
    if origin in (tuple, list, frozenset, Sequence):
        collect = tuple if origin is Sequence else origin
        return functools.partial(_decode_sequence, collect, _build_decoder(arguments[0]))
    if origin is not None and issubclass(origin, Mapping):
        return functools.partial(_decode_mapping, _build_decoder(arguments[1]))
    if dataclasses.is_dataclass(kind):
        decode_one = _decode_shared if kind in _SHARED else _decode_dataclass
        return functools.partial(decode_one, typing.cast(type, kind))
    return functools.partial(_decode_plain, kind)


def _decode_union(options: Sequence[Decoder], has_none: bool, value: Any, lax: bool) -> Any:
    if value is None and has_none:
        return None
    first: _Mismatch | None = None
    for decode_option in options:
        try:
            return decode_option(value, lax)
        except _Mismatch as problem:
            first = first or problem
    assert first is not None
    raise first


def _decode_literal(allowed: tuple[Any, ...], value: Any, lax: bool) -> Any:
    if value in allowed:
        return value
    raise _Mismatch(f" must be one of {list(allowed)}, not {value!r:.80}")


def _decode_sequence(collect: Callable[[list[Any]], Any], decode_item: Decoder, value: Any, lax: bool) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _Mismatch(f" must be a list, not {type(value).__name__}")
    items: list[Any] = []
    try:
        for item in value:
            items.append(decode_item(item, lax))  # noqa: PERF401  (the number of items says where it failed)
    except _Mismatch as problem:
        problem.where = f"[{len(items)}]{problem.where}"
        raise
    return collect(items)


def _decode_mapping(decode_item: Decoder, value: Any, lax: bool) -> dict[str, Any]:
    if type(value) is not dict and not isinstance(value, Mapping):
        raise _Mismatch(f" must be an object, not {type(value).__name__}")
    items: dict[str, Any] = {}
    for key, item in value.items():
        try:
            items[str(key)] = decode_item(item, lax)
        except _Mismatch as problem:
            problem.where = f".{key}{problem.where}"
            raise
    return items


def _decode_dataclass(cls: type, value: Any, lax: bool) -> Any:
    values = _decode_fields(cls, value, lax)
    try:
        return cls(**values)
    except (TypeError, ValueError) as problem:
        raise _Mismatch(f": {problem}") from problem


def _decode_shared(cls: type, value: Any, lax: bool) -> Any:
    try:
        # Later versions of the format depend on which parts of the value are the same object.
        data = marshal.dumps(value, 2)
    except ValueError:  # not from JSON
        return _decode_dataclass(cls, value, lax)
    if len(data) > _MOST_SHARED_BYTES:
        return _decode_dataclass(cls, value, lax)
    return _decode_marshalled(cls, data, lax)


@functools.lru_cache(maxsize=1_024)
def _decode_marshalled(cls: type, data: bytes, lax: bool) -> Any:
    return _decode_dataclass(cls, marshal.loads(data), lax)


def _decode_fields(target: Callable[..., Any], value: Any, lax: bool) -> dict[str, Any]:
    if type(value) is not dict and not isinstance(value, Mapping):
        raise _Mismatch(f" must be an object, not {type(value).__name__}")
    plan = _plan(target)
    values = {}
    for name, item in value.items():
        known = plan.get(name)
        if known is None:
            if lax:
                continue
            raise _Mismatch(f" has no field {name!r:.60}; it has {', '.join(plan)}")
        try:
            values[name] = known[0](item, lax)
        except _Mismatch as problem:
            problem.where = f".{name}{problem.where}"
            raise
    if len(values) < len(plan):
        for name, (_, is_required) in plan.items():
            if is_required and name not in values:
                raise _Mismatch(f" lacks the field {name!r}")
    return values


def _decode_plain(kind: Any, value: Any, lax: bool) -> Any:
    found = type(value)
    if found is kind and (kind is str or kind is bool):
        return value
    if kind is int and found is float and value.is_integer():
        value, found = int(value), int  # JSON has one kind of numbers
    if found is int and not -_MOST <= value < _MOST:
        raise _Mismatch(f" must be a number below 2**63, not one of {len(f'{value:x}')} hexadecimal digits")
    if kind is float and found is int:
        value = float(value)
    if type(value) is not kind:
        raise _Mismatch(f" must be {_KINDS.get(kind, kind)}, not {found.__name__}")
    if kind is float and not math.isfinite(value):
        raise _Mismatch(f" must be a finite number, not {value}")
    return value
