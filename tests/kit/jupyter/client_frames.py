"""Frames of any form, as Hypothesis strategies: what somebody with a token may send through a kernel's websocket."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from kit.jupyter.client_messages import BAD_LEGACY, BAD_V1, header, legacy, parts_of, v1
from roost.provisioners.server_extension.client_message import V1

_numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, -(2**63), 10**300]))
_texts = st.one_of(
    st.text(max_size=20), st.sampled_from(["", "\ud800", "\x1b[2J", "../..", "\0", "x" * 70_000])
)
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)),
    max_leaves=6,
)
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
_parts = st.one_of(st.builds(lambda value: json.dumps(value).encode(), _values), st.binary(max_size=40))
_channels = st.sampled_from([b"shell", b"control", b"stdin", b"iopub", b"evil", b"", b"\xff"])


def any_frame(is_v1: bool | None = None) -> st.SearchStrategy[tuple[str | bytes, str | None]]:
    """Return a strategy of frames with their subprotocols."""
    wanted = {True: [_frames_v1()], False: [_frames_legacy()], None: [_frames_v1(), _frames_legacy()]}[is_v1]
    return st.one_of(*wanted)


def _frames_v1() -> st.SearchStrategy[tuple[str | bytes, str | None]]:
    whole = st.builds(
        lambda head, metadata, content, channel, more: v1(
            [json.dumps(head).encode(), b"{}", metadata, json.dumps(content).encode(), *more], channel
        ),
        _headers,
        _parts,
        _contents,
        _channels,
        st.lists(st.binary(max_size=20), max_size=3),
    )
    spoilt = st.builds(_spoil, st.just(v1(parts_of("1"))), st.integers(0, 100), st.binary(max_size=16))
    frames = st.one_of(
        whole, spoilt, st.binary(max_size=200), st.text(), st.sampled_from(list(BAD_V1.values()))
    )
    return frames.map(lambda frame: (frame, V1))


def _frames_legacy() -> st.SearchStrategy[tuple[str | bytes, str | None]]:
    documents: st.SearchStrategy[Any] = st.one_of(
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
    binary = st.builds(
        lambda document, buffers: legacy(json.dumps(document).encode(), buffers),
        documents,
        st.lists(st.binary(max_size=20), max_size=3),
    )
    bad = st.sampled_from(list(BAD_LEGACY.values()))
    frames = st.one_of(documents.map(json.dumps), binary, st.binary(max_size=100), st.text(), bad)
    return frames.map(lambda frame: (frame, None))


def _spoil(frame: bytes, at: int, other: bytes) -> bytes:
    return frame[:at] + other + frame[at + len(other) :]
