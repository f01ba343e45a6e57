"""Programs that read a kernel's output leave out its bad messages, and show all others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace
from typing import Any, cast

from jupyter_client.asynchronous.client import AsyncKernelClient

from roost.launchers.agent.output.journal import Journal
from roost.launchers.protocol.messages import JournalLimits, JournalPage
from roost.provisioners.journal_reader import read_runs
from roost.provisioners.kernel_connection import accept_odd_messages
from roost.provisioners.server_extension.replay import Replay
from roost.scheduler.client.client import Client
from roost.testing.deadlines import allow_s

CELL = {"msg_id": "cell", "session": "s", "msg_type": "execute_request", "cellId": "c"}
GOOD = {**CELL, "msg_id": "good", "cellId": "g"}
BAD_CONTENTS: list[tuple[str, Any]] = [
    ("stream", {}),
    ("stream", None),
    ("stream", {"name": ["stdout"], "text": {"a": 1}}),
    ("stream", b"[" * 200_000),
    ("execute_input", {}),
    ("execute_input", {"code": 7, "execution_count": "x"}),
    ("display_data", {}),
    ("display_data", {"data": [1], "metadata": 7, "transient": 7}),
    ("display_data", {"data": {"text/plain": "a"}, "transient": {"display_id": ["a"]}}),
    ("display_data", {"data": {"application/json": [float("nan"), "\ud800"]}, "metadata": {}}),
    ("update_display_data", {}),
    ("update_display_data", {"transient": {"display_id": {}}, "data": 7}),
    ("execute_result", {"data": None, "execution_count": float("inf")}),
    ("execute_result", {"data": {"text/plain": ["\x1b]0;title\x07"]}, "execution_count": 2**200}),
    ("error", {}),
    ("error", {"ename": 7, "evalue": [], "traceback": "text"}),
    ("error", {"traceback": [7, None, {"a": 1}]}),
    ("status", {}),
    ("status", {"execution_state": {"a": 1}}),
    ("status", {"execution_state": None}),
    ("clear_output", None),
    ("comm_msg", [1, 2]),
    ("unknown", 7),
]
METADATA = [b"{}", b"[" * 200_000, b"7"]


class OneJournal:
    """A stand-in for the service's client, with the journal of one kernel."""

    def __init__(self) -> None:
        self.journal_ = Journal(JournalLimits())
        self._number = 0

    def publish(
        self, kind: str, content: Any, parent: Any = None, metadata: bytes = b"{}", *more: bytes
    ) -> str:
        self._number += 1
        header = {"msg_id": f"m{self._number}", "msg_type": kind}
        parts = [header, CELL if parent is None else parent, metadata, content]
        encoded = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
        self.journal_.add([b"", b"<IDS|MSG>", b"", *encoded, *more])
        return f"m{self._number}"

    def run_good_cell(self) -> list[str]:
        return [
            self.publish("status", {"execution_state": "busy"}, GOOD),
            self.publish("execute_input", {"code": "1", "execution_count": 4}, GOOD),
            self.publish("stream", {"name": "stdout", "text": "good"}, GOOD),
            self.publish("status", {"execution_state": "idle"}, GOOD),
        ]

    def journal(self, kernel_id: str, **choice: Any) -> Any:
        async def answer(_: float) -> JournalPage:
            return self.journal_.read(**choice)

        return SimpleNamespace(within=answer)


async def test_a_display_is_updated_by_its_id_alone() -> None:
    kernel = OneJournal()
    for kind, content in (
        ("display_data", {"data": {"a": 1}, "transient": {"display_id": "d"}}),
        ("update_display_data", {"data": {"a": 2}, "transient": {"display_id": "d"}}),
        ("update_display_data", {"data": {"a": 3}}),
    ):
        kernel.publish(kind, content, GOOD)
    kernel.run_good_cell()
    (run,) = await read_runs(cast(Client, kernel), "k")
    shown = {"output_type": "display_data", "data": {"a": 2}, "metadata": {}}
    assert run.outputs == [shown, {"output_type": "stream", "name": "stdout", "text": "good"}]


def test_a_client_reads_any_message() -> None:
    client = AsyncKernelClient()
    accept_odd_messages(client)
    session = client.session
    header = {"msg_id": "m", "msg_type": "stream", "version": "5.3"}
    bad: list[list[Any]] = [
        [b"[" * 200_000, {}, {}, {}],
        [{}, {}, {}, {}],
        [7, {}, {}, {}],
        [{**header, "msg_id": ["a"]}, {}, {}, {}],
        [{**header, "msg_type": ["a"]}, {}, {}, {}],
        [{**header, "version": 7}, {}, {}, {}],
        [header, b"{", {}, {}],
        [header, {}, b"[" * 200_000, {}],
        [header, {}, {}],
    ]
    for parts in bad:
        message = session.deserialize(sign(session, parts))
        assert (message["header"]["msg_type"], message["parent_header"].get("msg_id")) == ("", None)
    for parent in (None, [], 7, {"msg_id": {"a": 1}}):
        message = session.deserialize(sign(session, [header, parent, None, None]))
        assert message["parent_header"] == {}
        assert message["content"] == {"name": "stdout", "text": ""}
    message = session.deserialize(sign(session, [header, {"msg_id": "r"}, {}, {"text": "a", "more": 1}]))
    assert message["parent_header"]["msg_id"] == "r"
    assert message["content"] == {"name": "stdout", "text": "a", "more": 1}
    status = [{**header, "msg_type": "status"}, {}, {}, {}]
    assert session.deserialize(sign(session, status))["content"]["execution_state"] == ""
    unsigned = [b"wrong", *sign(session, status)[1:]]
    session.key = b"key"
    assert session.deserialize(unsigned)["msg_type"] == ""


def sign(session: Any, parts: list[Any]) -> list[bytes]:
    encoded = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
    return [session.sign(encoded), *encoded]


class Socket:
    """A stand-in for a client's connection, which records the messages that the client gets."""

    kernel_id = "k"
    session = SimpleNamespace(session="s")
    log = SimpleNamespace(warning=print)

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def write_parts(self, channel: str, parts: list[bytes]) -> None:
        header, _, _, content = (json.loads(part) for part in parts[:4])
        self.sent.append((header["msg_type"], content))

    def speak(self, channel: str, kind: str, content: Any, parent: Any) -> None:
        assert "header" not in parent
        json.dumps([content, parent], allow_nan=False, ensure_ascii=False).encode()
        self.sent.append((kind, content))

    def send_live(self, message: list[bytes]) -> None:
        self.sent.append(("live", message))

    def probe(self) -> None: ...

    async def drain(self) -> None: ...


async def test_a_replay_goes_through_bad_messages() -> None:
    kernel, client = OneJournal(), Socket()
    for metadata in METADATA:
        for kind, content in BAD_CONTENTS:
            kernel.publish(kind, content, {**CELL, "header": 7}, metadata)
    kernel.run_good_cell()
    provisioner: Any = SimpleNamespace(service=kernel)
    replay = Replay(client, provisioner, None)
    running = asyncio.create_task(replay.run())
    held: list[list[bytes]] = [[b"no message"], [b"good"], [b"later"]]
    assert replay.hold("", held[0])
    assert replay.hold(kernel.publish("stream", {"text": "live"}, GOOD), held[1])
    assert replay.hold("x", held[2])
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(running, allow_s(30))
    assert running.done()
    assert running.exception() is None
    kinds = [kind for kind, _ in client.sent]
    assert client.sent[kinds.index("live") :] == [("live", held[0]), ("live", held[2])]
    assert ("stream", {"name": "stdout", "text": "good"}) in client.sent
    assert client.sent[kinds.index("live") - 1] == ("stream", {"name": "stdout", "text": "live"})
    assert replay.note_reply("")
    assert replay.note_reply(""), "replies without an id are not the same reply"
    assert not replay.hold("", held[0])


async def test_a_replay_clears_only_cells_that_show_something() -> None:
    """A cell that the client sends meanwhile shows nothing but a warning of roost."""
    kernel, client = OneJournal(), Socket()
    kernel.publish("execute_input", {"code": "1", "execution_count": 3}, CELL)
    kernel.run_good_cell()
    provisioner: Any = SimpleNamespace(service=kernel)
    replay = Replay(client, provisioner, None)
    replay.note_request(GOOD["msg_id"])
    running = asyncio.create_task(replay.run())
    assert replay.hold(kernel.publish("stream", {"name": "stdout", "text": "live"}, GOOD), [b"live"])
    await asyncio.wait_for(running, allow_s(30))
    kinds = [kind for kind, _ in client.sent]
    assert kinds.count("clear_output") == 1
    assert kinds.index("clear_output") < kinds.index("stream")
