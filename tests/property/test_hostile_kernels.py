"""Messages of kernels, of any form: the journal and its readers go on, stay within bounds, and show later cells.

`make long` sends more of them.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jupyter_client.session import Session

from kit.jupyter.hostile_kernel import BATCH, MESSAGES, good_cell, messages
from roost.launchers.agent.output.journal import Journal
from roost.launchers.protocol.messages import JournalLimits, JournalPage
from roost.placement.model.json_codec import decode, encode
from roost.provisioners.execution import Result, add_output, build_result
from roost.provisioners.journal_reader import CellRun, read_runs
from roost.provisioners.kernel_connection import accept_odd_messages
from roost.scheduler.cli.output import _show
from roost.scheduler.client.client import Client

MEMORY_BYTES = 1 << 20
MOST_ANSWER_BYTES = 8 << 20


def publish_all(journal: Journal, batch: list[list[bytes]]) -> None:
    for frames in batch:
        journal.add(frames)
        assert journal.state in ("", "busy", "idle", "starting")


def read(journal: Journal, session: str = "") -> list[CellRun]:
    """Return the runs in a journal, whose pages cross a socket."""

    def answer(**choice: Any) -> JournalPage:
        page = json.dumps(encode(journal.read(**choice))).encode()
        assert len(page) < MOST_ANSWER_BYTES
        return decode(JournalPage, json.loads(page))

    async def within(choice: dict[str, Any]) -> JournalPage:
        return answer(**choice)

    def call(_: str, **choice: Any) -> Any:
        return SimpleNamespace(within=lambda _: within(choice))

    return asyncio.run(read_runs(cast(Client, SimpleNamespace(journal=call)), "k", session=session))


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(
    max_examples=max(1, MESSAGES * 9 // 10 // BATCH),
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(messages(), min_size=BATCH, max_size=BATCH))
def test_any_message_is_read_or_left_out(batch: list[list[bytes]]) -> None:
    journal = Journal(JournalLimits(memory_bytes=MEMORY_BYTES))
    publish_all(journal, batch)
    publish_all(journal, good_cell("good"))
    for session in ("", "good"):
        runs = read(journal, session)
        good = runs[-1]
        assert (good.request_id, good.code, good.execution_count) == ("good", "print(name)", 7)
        assert (good.is_done, good.is_cut) == (True, False)
        assert good.outputs == [{"output_type": "stream", "name": "stdout", "text": "good"}]
        json.dumps([run.outputs for run in runs], allow_nan=False, ensure_ascii=False).encode()
        with redirect_stdout(io.StringIO()) as printed:
            _show(runs)
        assert "good\n" in printed.getvalue()
        assert "\x1b]" not in printed.getvalue()
    kept_bytes = sum(entry.size_bytes for entry in journal._entries)
    assert kept_bytes == journal._size_bytes <= MEMORY_BYTES
    counts = Counter(entry.request_id for entry in journal._entries if entry.request_id)
    assert {name: request.entries for name, request in journal._requests.items()} == counts
    asyncio.run(journal.close())
    read_live(batch)


def read_live(batch: list[list[bytes]]) -> None:
    """Read the messages as a client of the kernel does, from IOPub and as replies."""
    session = Session()
    accept_odd_messages(SimpleNamespace(session=session))
    outputs: list[dict[str, Any]] = []
    for frames in batch:
        try:
            _, parts = session.feed_identities(frames)
        except ValueError:
            continue  # jupyter_client itself has dropped it
        if len(parts) > 4:
            parts = [session.sign(parts[1:5]), *parts[1:]]
        message = session.deserialize(parts)
        assert message["parent_header"].get("msg_id") not in {"mine"}, "clients look for it in a set"  # noqa: FURB171
        add_output(outputs, message)
        result = build_result(outputs, message["content"])
        assert isinstance(result, Result)
        assert {type(each) for each in (result.text, result.stdout, result.stderr)} == {str}
        assert result.error is None or {type(each) for each in result.error.fields.values()} == {str}
