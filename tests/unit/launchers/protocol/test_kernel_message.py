"""The reader of kernels' messages takes what Jupyter defines, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.jupyter.hostile_kernel import UNREADABLE
from roost.launchers.protocol.kernel_message import (
    Header,
    UnreadableMessage,
    find_parts,
    read_content,
    read_display_id,
    read_fields,
    read_message,
    read_parent,
)

HEADER = b'{"msg_id": "m", "msg_type": "stream", "session": "s"}'


def test_a_message_is_read() -> None:
    parent = {"msg_id": "r", "msg_type": "execute_request", "session": "s", "cellId": "c", "header": 7}
    content = b'{"name": "stdout", "text": "a"}'
    parts = find_parts(
        [b"topic", b"<IDS|MSG>", b"", HEADER, json.dumps(parent).encode(), b"{}", content, b"x"]
    )
    message = read_message(parts)
    assert len(parts) == 5
    assert (message.header.msg_id, message.header.kind) == ("m", "stream")
    fields = {name: value for name, value in parent.items() if name != "header"}
    assert message.parent == Header(
        fields=fields, msg_id="r", kind="execute_request", session="s", cell_id="c"
    )
    assert message.content == {"name": "stdout", "text": "a"}


@pytest.mark.parametrize("place", range(4))
def test_each_part_must_be_a_json_object(place: int) -> None:
    for part in UNREADABLE:
        parts = [HEADER, b"{}", b"{}", b"{}"]
        parts[place] = part
        with pytest.raises(UnreadableMessage):
            read_message(parts)


@pytest.mark.parametrize(
    "frames", [[], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"", HEADER, b"{}", b"{}"], [HEADER, b"{}", b"{}", b"{}"]]
)
def test_a_message_needs_a_delimiter_and_four_parts(frames: list[bytes]) -> None:
    with pytest.raises(UnreadableMessage):
        find_parts(frames)


def test_levels_are_counted_and_not_brackets() -> None:
    assert len(read_fields(json.dumps({"data": [[[]]] * 1_000}).encode())["data"]) == 1_000
    assert read_fields(b'{"a": "' + b"[" * 1_000 + b'"}') == {"a": "[" * 1_000}
    deepest = b'{"a":' * 199 + b"{}" + b"}" * 199
    assert read_fields(deepest)


def test_numbers_and_texts_can_be_written_again() -> None:
    read = read_fields(
        rb'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5, "e": "\ud800 \ud83d\ude00", "\udfff": [1]}'
    )
    assert read == {"a": None, "b": None, "c": None, "d": 1.5, "e": "� 😀", "�": [1]}
    assert json.loads(json.dumps(read, allow_nan=False, ensure_ascii=False).encode()) == read


@pytest.mark.parametrize("value", [7, None, ["a"], {"a": 1}, "x" * 257, "a\nb", "a\x1b[31m", "", True])
def test_an_id_is_a_short_printable_text(value: Any) -> None:
    parent = {"msg_id": value, "session": value, "msg_type": value, "cellId": value}
    read = read_parent(json.dumps(parent).encode())
    assert (read.msg_id, read.session, read.kind, read.cell_id) == ("", "", "", "")
    assert read_display_id({"transient": {"display_id": value}}) == ""


@pytest.mark.parametrize("transient", [None, 7, [], "x", {}])
def test_an_output_may_lack_a_display_id(transient: Any) -> None:
    assert read_display_id({"transient": transient}) == read_display_id(transient) == ""
    assert read_display_id({"transient": {"display_id": "d"}}) == "d"


@pytest.mark.parametrize("wrong", [None, 7, ["x"], {"a": 1}, "text", True, -1])
def test_fields_of_another_type_count_as_missing(wrong: Any) -> None:
    names = {
        "stream": ("name", "text"),
        "error": ("ename", "evalue", "traceback"),
        "status": ("execution_state",),
    }
    names |= {
        "execute_result": ("execution_count", "data", "metadata"),
        "execute_input": ("code", "execution_count"),
    }
    names["kernel_info_reply"] = ("protocol_version", "language_info")
    for kind, fields in names.items():
        missing = read_content(kind, {})
        assert set(missing) == set(fields)
        read = read_content(kind, dict.fromkeys(fields, wrong))
        for name, value in read.items():
            default = missing[name]
            assert value == default or type(value) is type(wrong)
            assert default is None or type(value) is type(default)
        assert read_content(kind, wrong if not isinstance(wrong, dict) else None) == missing


def test_right_fields_stay() -> None:
    error = {"ename": "E", "evalue": "v", "traceback": ["a", "b"]}
    assert read_content("error", error) == error
    assert read_content("error", {**error, "traceback": ["a", 7, None, "b"]}) == error
    assert read_content("status", {"execution_state": "busy", "more": 1}) == {"execution_state": "busy"}
    assert read_content("status", {"execution_state": "\x1b[31m"}) == {"execution_state": ""}
    assert read_content("execute_result", {"execution_count": 3})["execution_count"] == 3
    assert read_content("kernel_info_reply", {"protocol_version": "5.3"})["protocol_version"] == "5.3"
    assert read_content("unknown", {"a": 1}) == {}
