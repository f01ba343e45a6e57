"""A frame of any form is a message, or is refused. `make long` reads more of them."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from jupyter_client.session import Session

from kit.jupyter.client_messages import any_frame
from kit.machine.bad_input import INPUTS
from roost.provisioners.server_extension.client_message import BadMessage, read_message

SESSION = Session(key=b"")


@pytest.mark.filterwarnings("ignore:Message serialization failed")  # jupyter_client cleans what is no JSON
@settings(max_examples=INPUTS)
@given(any_frame)
def test_a_frame_is_a_message_or_is_refused(case: tuple[str | bytes, str | None]) -> None:
    frame, subprotocol = case
    with suppress(BadMessage):
        message = read_message(frame, subprotocol=subprotocol, pack=SESSION.pack, sender=None)
        answer = SESSION.msg("status", parent=message.header)
        json.dumps(answer["parent_header"])
        assert json.loads(message.parts_with_cell_id()[0])["msg_id"] == message.header["msg_id"]
        assert message.n_bytes <= 2 * len(frame) + 1_000
