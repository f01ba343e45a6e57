"""The messages that are held for a waiting kernel, and how their cells end."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from kit.jupyter.client_messages import a_message
from roost.provisioners.server_extension import held_messages
from roost.provisioners.server_extension.client_message import ClientMessage
from roost.provisioners.server_extension.held_messages import HeldMessages
from roost.provisioners.server_extension.pending_start import PendingStart


class Client:
    """A stand-in for a client's connection. It records the messages that roost sends to the client."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, Mapping[str, Any], str]] = []

    def speak(self, channel: str, kind: str, content: Mapping[str, Any], parent: Mapping[str, Any]) -> None:
        self.told.append((channel, kind, content, parent.get("msg_id", "")))


def test_messages_stay_in_order_and_are_taken_once() -> None:
    held = HeldMessages()
    for name in "abc":
        assert held.add(a_message(name, kind="comm_msg" if name == "b" else "execute_request"))
    assert [message.header["msg_id"] for message in held.take(lambda message: message.is_cell)] == ["a", "c"]
    assert [message.header["msg_id"] for message in held.take()] == ["b"]
    assert held.take() == []


def test_there_is_a_limit_in_messages_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldMessages()
    assert all(held.add(a_message("x")) for _ in range(held_messages.MOST_MESSAGES))
    assert not held.add(a_message("x"))
    held.take()
    monkeypatch.setattr(held_messages, "MOST_BYTES", 2 * a_message("x").n_bytes)
    assert [held.add(a_message("x")) for _ in range(3)] == [True, True, False]
    held.take()
    assert held.add(a_message("x"))


def test_there_is_a_limit_for_the_whole_server(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # what other tests have held
    one, two = HeldMessages(), HeldMessages()
    monkeypatch.setattr(held_messages, "MOST_BYTES_IN_ALL", 2 * a_message("x").n_bytes)
    assert [held.add(a_message("x")) for held in (one, two, one, two)] == [True, True, False, False]
    one.take()
    assert two.add(a_message("x"))


def test_a_servers_file_gets_short_headers() -> None:
    held = HeldMessages()
    held.add(
        replace(a_message("x"), header={"msg_id": "x", "msg_type": "execute_request", "date": 5, "more": "y"})
    )
    assert held.cells == [{"msg_id": "x", "msg_type": "execute_request"}]


def test_a_cell_that_cannot_be_held_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_messages, "MOST_MESSAGES", 1)
    client = Client()
    start = PendingStart("k", {}, logging.getLogger())
    start.connections.append(client)
    start.hold(a_message("first", client))
    start.hold(a_message("second", client))
    assert [(channel, kind, about) for channel, kind, _, about in client.told] == [
        ("iopub", "error", "second"),
        ("shell", "execute_reply", "second"),
        ("iopub", "status", "second"),
    ]
    assert "Too many messages" in client.told[0][2]["evalue"]
    assert client.told[1][2]["status"] == "error"


def test_the_line_is_in_the_first_cell_of_a_notebook_alone() -> None:
    client = Client()
    start = PendingStart("k", {}, logging.getLogger())
    start.connections.append(client)
    start.hold(a_message("script", client))
    start.line.change("Position 2.")
    assert client.told == []
    for name in ("cell", "other"):
        start.hold(a_message(name, client, metadata={"cellId": name}))
    start.line.change("Position 1.")
    start.line.change("Position 1.")
    start.end_cells("No room.")
    shown = [(kind, about) for _, kind, _, about in client.told]
    assert shown[:3] == [("display_data", "cell"), ("update_display_data", "cell"), ("clear_output", "cell")]
    first, second = (content for _, _, content, _ in client.told[:2])
    assert first["data"]["text/plain"] == "Position 2."
    assert second["data"]["text/plain"] == "Position 1."
    assert first["transient"] == second["transient"]
    assert [about for kind, about in shown if kind == "error"] == ["script", "cell", "other"]


class OpenClient(Client):
    """A client whose channels to the kernel can be opened. The kernel refuses the message `fails`."""

    is_open = True

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails, self.sent, self.ended = fails, list[str](), list[str]()
        self.is_released = False

    async def open_channels(self) -> None:
        pass

    def deliver(self, message: ClientMessage) -> None:
        if message.header["msg_id"] == self.fails:
            raise OSError("no room")
        self.sent.append(message.header["msg_id"])

    def end_cell(self, header: Mapping[str, Any], sentence: str) -> None:
        self.ended.append(header["msg_id"])

    def release(self) -> None:
        self.is_released = True


async def test_a_held_message_that_cannot_be_sent_is_dropped_alone() -> None:
    clients = OpenClient("b"), OpenClient("")
    start = PendingStart("k", {}, logging.getLogger())
    start.connections.extend(clients)
    for name, client in (("a", 0), ("b", 0), ("c", 1), ("d", 0)):
        start.hold(a_message(name, clients[client]))
    await start.open()
    assert [(client.sent, client.ended, client.is_released) for client in clients] == [
        (["a", "d"], ["b"], True),
        (["c"], [], True),
    ]
