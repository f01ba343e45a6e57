"""A kernel that publishes all messages that it receives, and messages of any form for it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from hypothesis import strategies as st

MESSAGES = int(os.environ.get("ROOST_MESSAGES", "2000"))
"""How many messages of any form the tests publish. ROOST_MESSAGES sets it for long runs."""
BATCH = 10
"""After this many messages comes a good cell."""

_PROGRAM = r"""
import json, sys, zmq

connection = json.load(open(sys.argv[1]))
context = zmq.Context()


def bind(kind, name):
    socket = context.socket(kind)
    socket.sndhwm = socket.rcvhwm = 0
    socket.bind(f"tcp://{connection['ip']}:{connection[name]}")
    return socket


shell, iopub = bind(zmq.ROUTER, "shell_port"), bind(zmq.PUB, "iopub_port")
others = [bind(zmq.ROUTER, f"{name}_port") for name in ("control", "stdin", "hb")]
while True:
    iopub.send_multipart(shell.recv_multipart()[1:])
"""
HOSTILE_ARGV = (sys.executable, "-c", _PROGRAM, "{connection_file}")
"""The command of a kernel that publishes on IOPub all that it receives on its shell port."""

CELL = {"msg_id": "cell", "session": "s", "msg_type": "execute_request", "cellId": "c"}
FIELDS: dict[str, dict[str, Any]] = {
    "status": {"execution_state": "busy"},
    "execute_input": {"code": "1", "execution_count": 1},
    "stream": {"name": "stdout", "text": "text"},
    "display_data": {"data": {"text/plain": "1"}, "metadata": {}, "transient": {"display_id": "d"}},
    "update_display_data": {"data": {"text/plain": "2"}, "metadata": {}, "transient": {"display_id": "d"}},
    "execute_result": {"execution_count": 1, "data": {"text/plain": "1"}, "metadata": {}},
    "error": {"ename": "E", "evalue": "v", "traceback": ["E: v"]},
    "clear_output": {"wait": False},
    "comm_open": {"comm_id": "c", "target_name": "t", "data": {}},
    "comm_msg": {"comm_id": "c", "data": {}},
    "execute_reply": {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}},
    "kernel_info_reply": {"status": "ok", "protocol_version": "5.3", "language_info": {"name": "python"}},
    "interrupt_reply": {"status": "ok"},
    "shutdown_reply": {"status": "ok", "restart": False},
}
"""The fields of IOPub messages and of replies on the shell and control channels."""

_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "idle", "busy", "\ud800", "\x1b[31m", "\0", "x" * 300, "x" * 70_000]),
)
_numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, -1, 10**300, 1e308]))
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.just("data"), _texts), inner, max_size=3)
    ),
    max_leaves=6,
)
_DEEP = [b"[" * 200_000, b'{"a":' * 200_000, b'{"a":' * 500 + b"1" + b"}" * 500, b"1" * 5_000]
_raw = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([*_DEEP, b"", b"{", b"null", b"7"]),
    _values.map(lambda each: dump(each)),
)
_names = st.sampled_from(["msg_id", "msg_type", "session", "cellId", "header"])
_parents = st.sampled_from([CELL, {**CELL, "session": "other"}, {**CELL, "msg_type": "comm_msg"}, {}])
_kinds = st.sampled_from(sorted(FIELDS))
_places = st.sampled_from(
    ["header", "parent", "content", "content", "content", "part", "part", "buffers", "frames", "none"]
)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    """Return the frames of a message. Often one place of it is not as Jupyter defines it."""
    kind, place = draw(_kinds), draw(_places)
    header, parent = {"msg_id": f"m{draw(_numbers)}", "msg_type": kind, "session": "k"}, {**draw(_parents)}
    content = dict(FIELDS[kind])
    if place in ("header", "parent"):
        (header if place == "header" else parent)[draw(_names)] = draw(_values)
    elif place == "content":
        name = draw(st.sampled_from(sorted(content)))
        if draw(st.booleans()):
            content[name] = draw(_values)
        else:
            del content[name]
    parts = [*map(dump, (header, parent, {}, content))]
    if place == "part":
        parts[draw(st.integers(0, 3))] = draw(_raw)
    frames = [b"topic", b"<IDS|MSG>", b"signature", *parts]
    if place == "buffers":
        frames += draw(st.sampled_from([[b""], [b"ab"] * 2_000, [b"x" * 100_000]]))
    elif place == "frames":
        del frames[draw(st.integers(1, 7)) :]
    return frames


def good_cell(name: str) -> list[list[bytes]]:
    """Return the messages of a cell of the session `name`. It prints `name`."""
    parent = {**CELL, "msg_id": name, "session": name}
    contents: list[tuple[str, Any]] = [
        ("status", {"execution_state": "busy"}),
        ("execute_input", {"code": "print(name)", "execution_count": 7}),
        ("stream", {"name": "stdout", "text": name}),
        ("status", {"execution_state": "idle"}),
    ]
    return [
        [
            b"topic",
            b"<IDS|MSG>",
            b"",
            *map(dump, ({"msg_id": f"{name}-{number}", "msg_type": kind}, parent, {}, each)),
        ]
        for number, (kind, each) in enumerate(contents)
    ]
