"""Frames of websockets: each is a message, or is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import (
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

from kit.jupyter.client_messages import BAD_LEGACY, BAD_V1, header, legacy, parts_of, v1
from kit.machine.cases import find_wrong
from roost.provisioners.server_extension.client_message import (
    V1,
    BadMessage,
    ClientMessage,
    check_frame,
    read_message,
)

SESSION = Session(key=b"")


def read(frame: str | bytes, subprotocol: str | None) -> ClientMessage:
    return read_message(frame, subprotocol=subprotocol, pack=SESSION.pack, sender=None)


@pytest.mark.parametrize(("frames", "subprotocol"), [(BAD_V1, V1), (BAD_LEGACY, None)], ids=["v1", "older"])
def test_a_bad_frame_is_refused(frames: Mapping[str, str | bytes], subprotocol: str | None) -> None:
    def check(what: str) -> None:
        with pytest.raises(BadMessage) as refusal:
            read(frames[what], subprotocol)
        assert len(str(refusal.value)) < 80

    assert find_wrong(frames, check) == []


@pytest.mark.parametrize("n_buffers", [0, 3])
def test_what_jupyter_writes_is_read(n_buffers: int) -> None:
    buffers = [b"x" * n for n in range(n_buffers)]
    parts = [*parts_of("1"), *buffers]
    message = read(serialize_msg_to_ws_v1(parts, "control"), V1)
    assert (message.channel, list(message.parts)) == ("control", parts)
    document = dict(
        zip(("header", "parent_header", "metadata", "content"), map(json.loads, parts), strict=False)
    )
    message = read(serialize_binary_message({**document, "channel": "stdin", "buffers": buffers}), None)
    assert message.channel == "stdin"
    assert [json.loads(part) for part in message.parts[:4]] == list(document.values())
    assert list(message.parts[4:]) == buffers
    assert read(json.dumps(document), None).channel == "shell"


def test_a_notebooks_cell_has_the_cells_id_in_its_header() -> None:
    message = read(v1(parts_of("1")), V1)
    assert message.is_cell
    assert message.is_of_notebook
    assert json.loads(message.parts_with_cell_id()[0]) == {**message.header, "cellId": "a"}
    for other in (v1(parts_of("1"), b"control"), v1(parts_of("1", header("complete_request")))):
        assert not read(other, V1).is_of_notebook
        assert read(other, V1).parts_with_cell_id() == read(other, V1).parts


def test_the_offsets_are_checked_for_kernels_of_others_too() -> None:
    for frame, subprotocol in ((BAD_V1["2^40 offsets"], V1), (BAD_LEGACY["2^31 offsets"], None)):
        with pytest.raises(BadMessage, match="wrong number of parts"):
            check_frame(frame, subprotocol)
    check_frame(v1([b"garbage", b"", b"", b""]), V1)
    check_frame(legacy(b"garbage"), None)
    check_frame("garbage", None)
