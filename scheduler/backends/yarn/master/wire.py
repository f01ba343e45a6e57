"""Protobuf's wire format for frozen dataclasses: https://protobuf.dev/programming-guides/encoding.

Each field of a message is annotated with its number:

    @dataclass(frozen=True, slots=True, kw_only=True)
    class NodeId:
        host: Annotated[str, 1] = ""
        port: Annotated[int, 2] = 0

A field is `int` (also for enums), `bool`, `str`, `bytes`, a message or None, or a tuple of one of these. ZIGZAG marks
protobuf's `sint32`. A field without a default is always written; other fields are written unless they have their
default. Fields that a message does not have are skipped. Numbers are signed, with 64 bits.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

ZIGZAG = "zigzag"

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


class WireFormatError(ValueError):
    """Bytes are no message of the expected kind."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message."""

    name: str
    number: int
    is_repeated: bool
    is_delimited: bool
    default: Any
    pack: Callable[[Any], Any]
    """Translates one value to an integer, or to bytes if `is_delimited`."""
    unpack: Callable[[Any], Any]
    """Translates back."""


def encode(message: object) -> bytes:
    """Return the bytes of a message, its fields in their order."""
    cls: Any = type(message)
    content = bytearray()
    for field in _fields(cls):
        value = getattr(message, field.name)
        if value is None or value == field.default:
            continue
        for item in value if field.is_repeated else (value,):
            content += encode_varint(field.number << 3 | (_DELIMITED if field.is_delimited else _VARINT))
            packed = field.pack(item)
            content += frame(packed) if field.is_delimited else encode_varint(packed)
    return bytes(content)


def decode(cls: type[T], data: bytes) -> T:
    """Return the message in these bytes. Raises `WireFormatError`."""
    kind: Any = cls
    fields = _by_number(kind)
    values: dict[str, Any] = {}
    at = 0
    while at < len(data):
        key, at = decode_varint(data, at)
        raw, at = _read_value(data, at, key & 7)
        field = fields.get(key >> 3)
        if field is None:
            continue
        if field.is_delimited != isinstance(raw, bytes):
            raise WireFormatError(f"{cls.__name__}.{field.name} has the wrong type")
        item = field.unpack(raw)
        values[field.name] = (*values.get(field.name, ()), item) if field.is_repeated else item
    try:
        return cls(**values)
    except TypeError as problem:
        raise WireFormatError(f"{cls.__name__}: {problem}") from None


def frame(content: bytes) -> bytes:
    """Return the content after its length, as protobuf's `writeDelimitedTo` writes a message."""
    return encode_varint(len(content)) + content


def split(data: bytes, at: int = 0) -> tuple[bytes, int]:
    """Return the content of the frame that begins at `at`, and where it ends. Raises `WireFormatError`."""
    size, at = decode_varint(data, at)
    if not 0 <= size <= len(data) - at:
        raise WireFormatError("a message ends too early")
    return data[at : at + size], at + size


def encode_varint(value: int) -> bytes:
    """Return an integer of 64 bits in groups of seven, the lowest first."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the signed integer at `at`, and where it ends. Raises `WireFormatError`."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            value &= 0xFFFF_FFFF_FFFF_FFFF
            return value - (value >> 63 << 64), at
    raise WireFormatError("an integer does not end")


def _read_value(data: bytes, at: int, wire_type: int) -> tuple[int | bytes, int]:
    if wire_type == _VARINT:
        return decode_varint(data, at)
    if wire_type == _DELIMITED:
        return split(data, at)
    size = _FIXED_SIZES.get(wire_type, len(data))
    if size > len(data) - at:
        raise WireFormatError(f"a field of type {wire_type} cannot be read")
    return data[at : at + size], at + size


@functools.cache
def _by_number(cls: type) -> dict[int, _Field]:
    return {field.number: field for field in _fields(cls)}


@functools.cache
def _fields(cls: type) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    assert dataclasses.is_dataclass(cls)
    return tuple(_describe(field, hints[field.name]) for field in dataclasses.fields(cls))


def _describe(field: dataclasses.Field[Any], hint: Any) -> _Field:
    kind, number, *marks = typing.get_args(hint)
    is_repeated = typing.get_origin(kind) is tuple
    if is_repeated:
        kind = typing.get_args(kind)[0]
    elif isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    pack, unpack = _translations(kind, ZIGZAG in marks)
    default = field.default if field.default is not dataclasses.MISSING else _ALWAYS
    return _Field(field.name, number, is_repeated, kind not in (int, bool), default, pack, unpack)


_ALWAYS = object()
"""The default of a field that is always written: no value equals it."""


def _translations(kind: Any, is_zigzag: bool) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if is_zigzag:
        return lambda value: value << 1 ^ value >> 63, lambda raw: raw >> 1 ^ -(raw & 1)
    if kind in (int, bool):
        return int, kind
    if kind is bytes:
        return bytes, bytes
    if kind is str:
        return str.encode, lambda raw: raw.decode(errors="replace")
    return encode, functools.partial(decode, kind)
