"""A kernel that publishes all messages that it receives, and messages of any form for it."""

from __future__ import annotations

import json
import sys
from typing import Any

from hypothesis import strategies as st

from kit.machine.bad_input import DEEP, any_number, any_value

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
    frames = shell.recv_multipart()[1:]
    if frames[0] != b"flood":
        iopub.send_multipart(frames)
        continue
    count, length = map(int, frames[1:])
    for number in range(count):
        parent = {"msg_id": str(number).rjust(length, "x"), "session": "s", "msg_type": "execute_request"}
        header = {"msg_id": str(number), "msg_type": "status"}
        parts = [json.dumps(part).encode() for part in (header, parent, {}, {"execution_state": "busy"})]
        iopub.send_multipart([b"", b"<IDS|MSG>", b"", *parts])
"""
HOSTILE_ARGV = (sys.executable, "-c", _PROGRAM, "{connection_file}")
"""The command of a kernel that publishes on IOPub all that it receives on its shell port.

If the first frame is `flood`, the kernel publishes messages for requests that never end. Their number and the length of
the requests' ids are the other frames.
"""

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
UNREADABLE = (
    DEEP,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b"",
    b"{",
    b"7",
    b"[1]",
    b'"text"',
    b"\xff\xfe{}",
)
"""Parts of messages that are no JSON object, or have too many levels."""

_values = any_value("data", "idle", "busy", "\x1b[31m", "x" * 70_000)
_raw = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([*UNREADABLE, b'{"a":' * 200_000, b"1" * 5_000, b"null"]),
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


def build_frames(
    header: Any, parent: Any, content: Any, *buffers: bytes, metadata: Any = b"{}"
) -> list[bytes]:
    """Return the frames of a message. A part that is bytes stays as it is."""
    parts = [part if isinstance(part, bytes) else dump(part) for part in (header, parent, metadata, content)]
    return [b"topic", b"<IDS|MSG>", b"signature", *parts, *buffers]


@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    """Return the frames of a message. Often one place of it is not as Jupyter defines it."""
    kind, place = draw(_kinds), draw(_places)
    header, parent = {"msg_id": f"m{draw(any_number)}", "msg_type": kind, "session": "k"}, {**draw(_parents)}
    content = dict(FIELDS[kind])
    if place in ("header", "parent"):
        (header if place == "header" else parent)[draw(_names)] = draw(_values)
    elif place == "content":
        name = draw(st.sampled_from(sorted(content)))
        if draw(st.booleans()):
            content[name] = draw(_values)
        else:
            del content[name]
    frames = build_frames(header, parent, content)
    if place == "part":
        frames[3 + draw(st.integers(0, 3))] = draw(_raw)
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
        build_frames({"msg_id": f"{name}-{number}", "msg_type": kind}, parent, each)
        for number, (kind, each) in enumerate(contents)
    ]
