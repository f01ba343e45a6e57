"""Reads messages of kernels, as input from a stranger: code in a kernel can publish anything.

The agent reads them for its journal, and applications read them in pages of the journal or in their own sockets.
Jupyter's front ends get a kernel's messages as they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from roost.launchers.daemon.json_text import TooDeep, check_depth

STATES = frozenset({"busy", "idle", "starting"})
"""The execution states that Jupyter's protocol defines."""
MOST_ID_CHARACTERS = 256
"""An id, a session or the type of a message with more characters counts as absent."""
MOST_PARTS = 1_000
"""A message with more parts, buffers included, is left out."""
_DELIMITER = b"<IDS|MSG>"
_JSON_PARTS = 4
"""The parts of a message after its signature: header, parent header, metadata, content. Buffers follow."""
_MOST_HEADER_BYTES = 2 << 20
"""A longer header, parent header or content of a status is not read."""
_MOST_DEPTH = 200
"""JSON with more levels is not read: programs that write it again, such as `json`, stop at a thousand calls."""

_VERSION = re.compile(r"[0-9]{1,4}(\.|$)")

_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "stream": {"name": "stdout", "text": ""},
    "display_data": {"data": {}, "metadata": {}},
    "update_display_data": {"data": {}, "metadata": {}},
    "execute_result": {"execution_count": None, "data": {}, "metadata": {}},
    "error": {"ename": "", "evalue": "", "traceback": []},
    "execute_input": {"code": "", "execution_count": None},
    "status": {"execution_state": ""},
    "comm_open": {"comm_id": "", "target_name": "", "data": {}},
    "comm_msg": {"comm_id": "", "data": {}},
    "comm_close": {"comm_id": "", "data": {}},
    "kernel_info_reply": {"protocol_version": "5.0", "language_info": {}},
}
"""The fields of each kind of message that roost, jupyter_client or nbclient uses.

A field that a kernel leaves out, or that has another type, gets the value that stands here.
"""


class UnreadableMessage(ValueError):
    """A kernel has sent something that is no message of Jupyter's protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header. The texts are empty where a header has none, and have at most `MOST_ID_CHARACTERS`."""

    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """All fields as the kernel has sent them."""
    msg_id: str = ""
    kind: str = ""
    """The `msg_type`."""
    session: str = ""
    cell_id: str = ""
    """The notebook's id of the cell; empty for other code."""


NO_HEADER = Header()
"""The parent header of a message without a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMessage:
    """A message of a kernel, whose parts are all readable. `read_content` returns the fields of `content` by type."""

    header: Header
    parent: Header
    content: Mapping[str, Any]


def find_parts(frames: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the parts of a message after its signature. Raises `UnreadableMessage` if there are too few or many."""
    try:
        start = frames.index(_DELIMITER) + 2
    except ValueError:
        raise UnreadableMessage("a message without a delimiter") from None
    if not start + _JSON_PARTS <= len(frames) <= start + MOST_PARTS:
        raise UnreadableMessage(f"a message of {len(frames)} frames")
    return tuple(frames[start:])


def read_message(parts: Sequence[bytes]) -> KernelMessage:
    """Return a message, given by its parts after the signature. Raises `UnreadableMessage`."""
    header, parent = read_header(parts[0]), read_parent(parts[1])
    read_fields(parts[2])
    return KernelMessage(header=header, parent=parent, content=read_fields(parts[3]))


def read_header(part: bytes) -> Header:
    """Return the header of a message. Raises `UnreadableMessage` also if it has no id or no type."""
    header = read_parent(part)
    if not header.msg_id or not header.kind:
        raise UnreadableMessage("a header without an id or a type")
    return header


def read_parent(part: bytes) -> Header:
    """Return a parent header. It may lack all fields, and xeus sends null. Raises `UnreadableMessage`."""
    fields = read_fields(part, _MOST_HEADER_BYTES)
    fields.pop("header", None)  # jupyter_client would take the field for the header of a whole message
    return Header(
        fields=fields,
        msg_id=_read_id(fields.get("msg_id")),
        kind=_read_id(fields.get("msg_type")),
        session=_read_id(fields.get("session")),
        cell_id=_read_id(fields.get("cellId")),
    )


def read_fields(part: bytes, most_bytes: int | None = None) -> dict[str, Any]:
    """Return the JSON object in a part of a message; empty for null. Raises `UnreadableMessage`."""
    if most_bytes is not None and len(part) > most_bytes:
        raise UnreadableMessage(f"a part of {len(part)} bytes")
    text = part.decode("utf-8", "replace")  # as jupyter_client does
    try:
        value = json.loads(text, parse_float=_read_float, parse_constant=_skip_constant)
    except (ValueError, RecursionError):
        raise UnreadableMessage("a part that is no JSON") from None
    if not value:
        return {}
    if not isinstance(value, dict):
        raise UnreadableMessage("a part that is no object")
    if text.count("[") + text.count("{") > _MOST_DEPTH:
        try:
            check_depth(value, most_levels=_MOST_DEPTH - 1)
        except TooDeep:
            raise UnreadableMessage(f"a part of more than {_MOST_DEPTH} levels") from None
    has_surrogates = "\\ud" in text or "\\uD" in text
    fields: dict[str, Any] = _replace_surrogates(value) if has_surrogates else value
    return fields


def read_state(content: bytes) -> str:
    """Return the state in the content of a `status`; empty if it is none that Jupyter defines."""
    try:
        state = read_fields(content, _MOST_HEADER_BYTES).get("execution_state")
    except UnreadableMessage:
        return ""
    return state if isinstance(state, str) and state in STATES else ""


def read_content(kind: str, content: object) -> dict[str, Any]:
    """Return the fields of a message's content that roost uses, each with the type that Jupyter defines."""
    given: Mapping[str, Any] = content if isinstance(content, dict) else {}
    read = {name: _read_field(given.get(name), default) for name, default in _FIELDS.get(kind, {}).items()}
    if kind == "error":
        read["traceback"] = [line for line in read["traceback"] if isinstance(line, str)]
    elif kind == "status" and read["execution_state"] not in STATES:
        read["execution_state"] = ""
    elif kind == "kernel_info_reply" and not _VERSION.match(read["protocol_version"]):
        read["protocol_version"] = _FIELDS[kind]["protocol_version"]
    return read


def read_display_id(content: object) -> str:
    """Return the name of an output that later messages update; empty if it has none."""
    transient = content.get("transient") if isinstance(content, dict) else None
    return _read_id(transient.get("display_id")) if isinstance(transient, dict) else ""


def _read_field(value: object, default: object) -> Any:
    if default is None:  # a count
        is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
        return value if is_count else None
    return value if isinstance(value, type(default)) else copy(default)


def _read_id(value: object) -> str:
    is_id = isinstance(value, str) and len(value) <= MOST_ID_CHARACTERS and value.isprintable()
    return str(value) if is_id else ""


def _read_float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None  # a page cannot read Infinity as JSON


def _skip_constant(_: str) -> None:
    """Read NaN and Infinity as null. Python writes them into JSON, and browsers refuse them."""


def _replace_surrogates(value: Any) -> Any:
    """Replace halves of surrogate pairs in texts, which cannot be written as UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    return value
