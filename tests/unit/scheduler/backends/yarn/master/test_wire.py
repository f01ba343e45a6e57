"""The wire format: known bytes from protobuf's own documentation, and bytes that are no message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from roost.scheduler.backends.yarn.master.wire import (
    ZIGZAG,
    WireFormatError,
    decode,
    decode_varint,
    encode,
    encode_varint,
    frame,
    split,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    a: Annotated[int, 1] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    text: Annotated[str, 2]
    inner: Annotated[Inner | None, 3] = None
    signed: Annotated[int, 4, ZIGZAG] = 0
    numbers: Annotated[tuple[int, ...], 5] = ()
    inners: Annotated[tuple[Inner, ...], 6] = ()
    is_set: Annotated[bool, 7] = True
    raw: Annotated[bytes | None, 8] = None


@pytest.mark.parametrize(
    ("message", "content"),
    [  # from https://protobuf.dev/programming-guides/encoding
        (Inner(a=150), "089601"),
        (Outer(text="testing"), "120774657374696e67"),
        (Outer(text="", inner=Inner(a=150)), "12001a03089601"),
        (Outer(text="", signed=-2), "12002003"),
        (Inner(a=-2), "08feffffffffffffffff01"),
        (Outer(text="", numbers=(1, 0)), "120028012800"),
        (Outer(text="", inners=(Inner(), Inner(a=1))), "1200320032020801"),
        (Outer(text="", is_set=False), "12003800"),
        (Outer(text="", raw=b""), "12004200"),
    ],
)
def test_known_bytes(message: object, content: str) -> None:
    assert encode(message).hex() == content
    assert decode(type(message), bytes.fromhex(content)) == message


def test_unknown_fields_are_skipped() -> None:
    """The content has unknown fields, 14 and 15, of each wire type before and after the known field."""
    unknown = bytes.fromhex("7001") + bytes.fromhex("7203414243") + b"\x79" + bytes(8) + b"\x7d" + bytes(4)
    assert decode(Inner, unknown + b"\x08\x05" + unknown) == Inner(a=5)


@pytest.mark.parametrize(
    "content",
    [
        "08",  # a number is missing
        "08ffffffffffffffffffffff01",  # a number of more than 64 bits
        "120574",  # a text ends too early
        "12ffffffffffffffffff01",  # a text of negative length
        "0a0100",  # a number as bytes
        "0b",  # a group
        "79000000",  # a fixed number ends too early
    ],
)
def test_no_message(content: str) -> None:
    with pytest.raises(WireFormatError):
        decode(Inner if content.startswith(("08", "0a", "79")) else Outer, bytes.fromhex(content))


def test_a_required_field_is_missing() -> None:
    with pytest.raises(WireFormatError, match="text"):
        decode(Outer, b"")


def test_frames() -> None:
    data = frame(b"abc") + frame(bytes(300))
    first, at = split(data)
    assert (first, split(data, at)) == (b"abc", (bytes(300), len(data)))
    with pytest.raises(WireFormatError):
        split(data[:-1], at)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63)])
def test_numbers(value: int) -> None:
    content = encode_varint(value)
    assert decode_varint(b"?" + content + b"?", 1) == (value, 1 + len(content))
