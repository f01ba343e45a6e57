"""Messages of clients: as roost holds them, and as frames of a websocket. Frames of any form too."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from kit.machine.bad_input import DEEP, any_value
from roost.provisioners.server_extension.client_message import V1, ClientMessage


def a_message(
    name: str,
    sender: object = None,
    *,
    kind: str = "execute_request",
    metadata: Mapping[str, str] | None = None,
) -> ClientMessage:
    """Return a message with the id `name`."""
    parts = ({"msg_id": name, "msg_type": kind}, {}, metadata or {}, {"code": name})
    return ClientMessage(
        sender=sender,
        channel="shell",
        parts=tuple(json.dumps(part).encode() for part in parts),
        header=parts[0],
        cell_id=(metadata or {}).get("cellId"),
    )


def header(kind: str = "execute_request", **other: Any) -> dict[str, Any]:
    """Return a header with an id of its own."""
    return {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "s", "username": "u", **other}


def parts_of(code: str, head: Mapping[str, Any] | None = None) -> list[bytes]:
    """Return the parts of a message that executes `code`."""
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    return [json.dumps(part).encode() for part in (head or header(), {}, {"cellId": "a"}, content)]


def v1(parts: Sequence[bytes], channel: bytes = b"shell") -> bytes:
    """Return a frame of version 1 of Jupyter's websocket protocol."""
    pieces = [channel, *parts]
    offsets = [8 * (len(pieces) + 2)]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    numbers = [len(offsets), *offsets]
    return b"".join([*(number.to_bytes(8, "little") for number in numbers), *pieces])


def legacy(document: bytes, buffers: Sequence[bytes] = ()) -> bytes:
    """Return a binary frame of the older protocol."""
    pieces = [document, *buffers]
    offsets = [4 * (len(pieces) + 1)]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    return b"".join([*(number.to_bytes(4, "big") for number in (len(pieces), *offsets)), *pieces])


DEEP_OBJECT = b'{"a":' * 200_000
BAD_V1 = {
    "empty": b"",
    "short": b"\x01",
    "2^40 offsets": (2**40).to_bytes(8, "little") * 4,
    "offsets of 2^63": (3).to_bytes(8, "little") + (2**63).to_bytes(8, "little") * 3,
    "falling offsets": v1(parts_of("1"))[:8] + v1(parts_of("1"))[8:56][::-1] + v1(parts_of("1"))[56:],
    "text": "text",
    "too few parts": v1(parts_of("1")[:3]),
    "too many parts": v1([*parts_of("1"), *[b""] * 20_000]),
    "other channel": v1(parts_of("1"), b"evil"),
    "iopub": v1(parts_of("1"), b"iopub"),
    "channel in no coding": v1(parts_of("1"), b"\xff\xfe"),
    "garbage as header": v1([b"garbage", *parts_of("1")[1:]]),
    "list as header": v1([b"[]", *parts_of("1")[1:]]),
    "deep header": v1([DEEP, *parts_of("1")[1:]]),
    "deep object as header": v1([DEEP_OBJECT, *parts_of("1")[1:]]),
    "900 levels": v1([json.dumps(header(a=0))[:-2].encode() + b"[" * 900 + b"]" * 900 + b"}", *parts_of("1")[1:]]),
    "no id": v1(parts_of("1", {"msg_type": "execute_request"})),
    "number as id": v1(parts_of("1", header(msg_id=1))),
    "object as id": v1(parts_of("1", header(msg_id={}))),
    "list as type": v1(parts_of("1", header(msg_type=["execute_request"]))),
    "long id": v1(parts_of("1", header(msg_id="x" * 1_000_000))),
    "long header": v1(parts_of("1", header(other="x" * 1_000_000))),
    "header in the header": v1(parts_of("1", header(header=5))),
    "half a character": v1(parts_of("1", header(username="\ud800"))),
    "no number": v1(parts_of("1", header(other=float("nan")))),
    "garbage as metadata": v1([parts_of("1")[0], b"{}", b"\xff", parts_of("1")[3]]),
    "deep metadata": v1([parts_of("1")[0], b"{}", DEEP, parts_of("1")[3]]),
    "list as metadata": v1([parts_of("1")[0], b"{}", b"[]", parts_of("1")[3]]),
}  # fmt: skip
"""Frames that are no message of version 1, by what is wrong with each."""
_DOCUMENT = {
    "header": header(),
    "parent_header": {},
    "metadata": {},
    "content": {"code": "1"},
    "channel": "shell",
}


def _changed(**changes: Any) -> str:
    return json.dumps({**_DOCUMENT, **changes})


BAD_LEGACY = {
    "empty": b"",
    "empty text": "",
    "2^31 offsets": (2**31 - 1).to_bytes(4, "big") * 4,
    "no parts": (0).to_bytes(4, "big") * 4,
    "less than none": (2**32 - 1).to_bytes(4, "big") * 4,
    "offsets behind the end": (2).to_bytes(4, "big") + (2**31).to_bytes(4, "big") * 2,
    "list": "[]",
    "null": "null",
    "garbage": "garbage",
    "deep": DEEP.decode(),
    "deep bytes": legacy(DEEP),
    "no header": _changed(header=None),
    "text as header": _changed(header="x"),
    "number as id": _changed(header=header(msg_id=1)),
    "other channel": _changed(channel="evil"),
    "list as channel": _changed(channel=["shell"]),
    "number as metadata": _changed(metadata=7),
    "buffers in a text": _changed(buffers=["x"]),
    "half a character": _changed(content={"code": "\ud800"}),
}
"""Frames that are no message of the older protocol, by what is wrong with each."""

_values = any_value("x" * 70_000)
_names = st.sampled_from(
    ["msg_id", "msg_type", "session", "username", "date", "version", "cellId", "subshell_id", "header"]
)
_kinds = st.sampled_from(
    [
        "execute_request",
        "comm_msg",
        "complete_request",
        "input_reply",
        "kernel_info_request",
        "interrupt_request",
    ]
)
_headers = st.one_of(
    st.builds(
        lambda kind, changes: {**header(kind), **changes},
        _kinds,
        st.dictionaries(_names, _values, max_size=2),
    ),
    _values,
)
_contents = st.one_of(_values, st.builds(lambda code: {"code": code}, _values))
_parts = st.one_of(_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40))
_buffers = st.lists(st.binary(max_size=20), max_size=3)


def _spoil(frame: bytes, at: int, other: bytes) -> bytes:
    return frame[:at] + other + frame[at + len(other) :]


_frames_v1 = st.one_of(
    st.builds(
        lambda head, metadata, content, channel, buffers: v1(
            [json.dumps(head).encode(), b"{}", metadata, json.dumps(content).encode(), *buffers], channel
        ),
        _headers,
        _parts,
        _contents,
        st.sampled_from([b"shell", b"control", b"stdin", b"iopub", b"evil", b"", b"\xff"]),
        _buffers,
    ),
    st.builds(_spoil, st.just(v1(parts_of("1"))), st.integers(0, 100), st.binary(max_size=16)),
    st.binary(max_size=200),
    st.text(),
    st.sampled_from(list(BAD_V1.values())),
)
_documents = st.one_of(
    st.builds(
        lambda head, metadata, content, channel: {
            "header": head, "parent_header": {}, "metadata": metadata, "content": content, "channel": channel,
        },
        _headers,
        _values,
        _contents,
        st.one_of(st.sampled_from(["shell", "control", "stdin", "iopub"]), _values),
    ),
    _values,
)  # fmt: skip
_frames_legacy = st.one_of(
    _documents.map(json.dumps),
    st.builds(lambda document, buffers: legacy(json.dumps(document).encode(), buffers), _documents, _buffers),
    st.binary(max_size=100),
    st.text(),
    st.sampled_from(list(BAD_LEGACY.values())),
)
any_frame: st.SearchStrategy[tuple[str | bytes, str | None]] = st.one_of(
    st.tuples(_frames_v1, st.just(V1)), st.tuples(_frames_legacy, st.none())
)
"""Frames of any form with their subprotocols: what somebody with a token may send through a kernel's websocket."""
