"""Reads the messages that clients send through their websockets. Anyone with a token may send any frame.

A frame is checked when it arrives, so that a message can be held, and later sent or ended, without a further check.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from roost.scheduler.input_files import TooDeep, check_depth
from roost.scheduler.messages import MOST_ID_CHARACTERS

V1 = "v1.kernel.websocket.jupyter.org"
CHANNELS = ("shell", "control", "stdin")
"""The channels on which clients send."""
_PARTS = ("header", "parent_header", "metadata", "content")
_MOST_PARTS = 10_000
"""At most this many parts, with the buffers."""
_MOST_HEADER_BYTES = 64 * 2**10
_MOST_LEVELS = 20
"""How many lists and objects may be inside each other in a header."""


class BadMessage(ValueError):
    """A frame that is no message of Jupyter's protocol. Its text completes the sentence "the frame has …"."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClientMessage:
    """A message to the kernel, which the connection `sender` has received.

    `parts` begin with the header. `cell_id` names the notebook's cell that the message executes; None if there is
    none, so that its sender cannot show outputs in a cell.
    """

    sender: Any
    channel: str
    parts: tuple[bytes, ...] = field(repr=False)
    header: dict[str, Any]
    cell_id: str | None = None

    @property
    def is_cell(self) -> bool:
        """True if the message asks the kernel to execute code."""
        return self.channel == "shell" and self.header["msg_type"] == "execute_request"

    @property
    def is_of_notebook(self) -> bool:
        return self.cell_id is not None

    def parts_with_cell_id(self) -> tuple[bytes, ...]:
        """Return the parts with the cell's id in the header. The kernel copies the header to all its answers."""
        if self.cell_id is None:
            return self.parts
        return (json.dumps({**self.header, "cellId": self.cell_id}).encode(), *self.parts[1:])

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.parts))


def read_message(
    frame: str | bytes, *, subprotocol: str | None, pack: Callable[[Any], bytes], sender: Any
) -> ClientMessage:
    """Return the message in a websocket's frame. `pack` writes a part of a kernel's message.

    Raises `BadMessage`.
    """
    if subprotocol == V1:
        channel, *parts = _split(frame, subprotocol)
        named = channel.decode("utf-8", "replace")
    else:
        named, parts = _read_document(frame, subprotocol, pack)
    if named not in CHANNELS:
        raise BadMessage(f"no channel of clients: {named!a:.40}")
    header, metadata = _read_header(parts[0]), _load(parts[2], "metadata")
    cell_id = metadata.get("cellId")
    is_cell = named == "shell" and header["msg_type"] == "execute_request"
    is_id = isinstance(cell_id, str) and len(cell_id) <= MOST_ID_CHARACTERS
    return ClientMessage(
        sender=sender,
        channel=named,
        parts=tuple(parts),
        header=header,
        cell_id=cell_id if is_cell and is_id else None,
    )


def check_frame(frame: str | bytes, subprotocol: str | None) -> None:
    """Check the numbers in a binary frame, which say where its parts begin. Raises `BadMessage`."""
    if isinstance(frame, bytes) or subprotocol == V1:
        _split(frame, subprotocol)


def _split(frame: str | bytes, subprotocol: str | None) -> list[bytes]:
    """Return the parts of a binary frame: of version 1, channel and parts; of the older format, JSON and buffers.

    Both begin with a number of offsets, and the offsets. Version 1 gives the end of the last part, too.
    """
    if isinstance(frame, str):
        raise BadMessage("text instead of binary parts")
    width, code, order = (8, "Q", "<") if subprotocol == V1 else (4, "I", ">")
    if len(frame) < width:
        raise BadMessage("no number of parts")
    (number,) = struct.unpack_from(order + code, frame)
    first = width * (number + 1)
    least = len(_PARTS) + 2 if subprotocol == V1 else 1
    if not least <= number <= _MOST_PARTS or first > len(frame):
        raise BadMessage(f"a wrong number of parts: {number}")
    offsets = list(struct.unpack_from(f"{order}{number}{code}", frame, width))
    if subprotocol != V1:
        offsets.append(len(frame))
    if offsets[0] < first or offsets[-1] > len(frame) or offsets != sorted(offsets):
        raise BadMessage("parts that overlap or end behind its end")
    return [frame[start:stop] for start, stop in itertools.pairwise(offsets)]


def _read_document(
    frame: str | bytes, subprotocol: str | None, pack: Callable[[Any], bytes]
) -> tuple[str, list[bytes]]:
    """Return the channel and the parts of a message in the older format: one JSON document, and buffers."""
    text, *buffers = _split(frame, subprotocol) if isinstance(frame, bytes) else [frame]
    document = _load(text, "message")
    if isinstance(frame, str) and document.get("buffers"):
        raise BadMessage("buffers in a text")
    try:
        parts = [pack(document.get(name) or {}) for name in _PARTS]
    except (ValueError, TypeError, RecursionError):
        raise BadMessage("a part that cannot be written as JSON") from None
    return document.get("channel") or "shell", [*parts, *buffers]


def _read_header(part: bytes) -> dict[str, Any]:
    if len(part) > _MOST_HEADER_BYTES:
        raise BadMessage(f"a header of {len(part):,} bytes")
    header = _load(part, "header")
    for name in ("msg_id", "msg_type"):
        value = header.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= MOST_ID_CHARACTERS:
            raise BadMessage(f"no {name} in its header")
    if "header" in header:  # jupyter_client would take it for a whole message
        raise BadMessage("a header in its header")
    try:
        check_depth(header, most_levels=_MOST_LEVELS)
    except TooDeep:
        raise BadMessage("a header of too many levels") from None
    try:
        json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # half of a character, or a number that JSON does not have
        raise BadMessage("a header that cannot be written as JSON") from None
    return header


def _load(part: str | bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(part)
    except (ValueError, RecursionError):
        raise BadMessage(f"no JSON as its {name}") from None
    if not isinstance(value, dict):
        raise BadMessage(f"no JSON object as its {name}")
    return value
