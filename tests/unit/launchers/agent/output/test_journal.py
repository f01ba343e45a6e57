"""The journal keeps messages in memory, and is read page by page."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
import zmq

from kit.machine.manual_clock import ManualClock
from roost.launchers.agent.output.journal import Journal
from roost.launchers.protocol.messages import JournalEntry, JournalLimits, JournalPage
from roost.placement.model.json_codec import encode

SIZE_BYTES = 100_000


class Publisher:
    """A publisher that adds messages to a journal, as a kernel publishes them."""

    def __init__(self, memory_bytes: int = SIZE_BYTES) -> None:
        self.clock = ManualClock()
        self.journal = Journal(JournalLimits(memory_bytes=memory_bytes), self.clock.time)
        self._number = 0

    def publish(
        self, kind: str, parent: dict[str, str] | None, buffers: tuple[bytes, ...] = (), **content: Any
    ) -> str:
        self._number += 1
        msg_id = f"m{self._number}"
        parts = [{"msg_id": msg_id, "msg_type": kind}, parent, {}, content]
        encoded = [json.dumps(part).encode() for part in parts]
        self.journal.add([b"topic", b"<IDS|MSG>", b"signature", *encoded, *buffers])
        return msg_id

    def run(self, request: str, *texts: str, session: str = "s", kind: str = "execute_request") -> list[str]:
        """Publish the messages of one cell (busy, a message for each text, idle) and return their ids."""
        parent = {"msg_id": request, "session": session, "msg_type": kind}
        return [
            self.publish("status", parent, execution_state="busy"),
            *(self.publish("stream", parent, name="stdout", text=text) for text in texts),
            self.publish("status", parent, execution_state="idle"),
        ]

    def ids(self, **choice: Any) -> list[str]:
        return [json.loads(split(entry)[0])["msg_id"] for entry in self.journal.read(**choice).entries]


def split(entry: JournalEntry) -> list[str]:
    """Return the parts of the message in this entry. The entry must hold the whole message."""
    assert (entry.offset, entry.end) == (0, 0)
    ends = itertools.accumulate(entry.lengths)
    return [entry.data[end - length : end] for end, length in zip(ends, entry.lengths, strict=True)]


def test_a_message_without_a_request_is_kept() -> None:
    """xeus-python sends null as the parent header of such a message."""
    kernel = Publisher()
    published = [kernel.publish("stream", None, name="stdout", text="a"), *kernel.run("r", "b")]
    assert kernel.ids() == published
    assert kernel.ids(session="s") == published[1:]


def test_messages_are_read_in_order_from_any_number_on() -> None:
    kernel = Publisher()
    published = kernel.run("r1", "a", "b")
    page = kernel.journal.read()
    assert kernel.ids() == list(page.ids) == published
    assert [json.loads(split(entry)[3]).get("text") for entry in page.entries] == [None, "a", "b", None]
    assert (page.first, page.read, page.last, page.is_last) == (1, 4, 4, True)
    assert kernel.ids(after=2) == published[2:]
    assert kernel.ids(after=4) == []


def test_a_page_is_bounded_and_the_next_one_goes_on() -> None:
    kernel = Publisher(memory_bytes=10_000_000)
    published = kernel.run("r1", *("x" * 100_000 for _ in range(20)))
    pages = read_all(kernel.journal)
    assert [msg_id for page in pages for msg_id in page.ids] == published
    assert len(pages) == 4


def read_all(journal: Journal) -> list[JournalPage]:
    pages = [journal.read()]
    while not (last := pages[-1]).is_last:
        pages.append(journal.read(after=last.read, offset=last.entries[-1].end if last.entries else 0))
    return pages


def test_a_long_message_comes_in_pieces_after_a_gap() -> None:
    """The journal no longer has the messages before the long one: a reader from the start meets a gap."""
    kernel = Publisher(memory_bytes=3_000_000)
    kernel.run("r1", "x" * 1_000_000, "y" * 1_000_000)
    *_, last = kernel.run("r2", "ab" * 800_000)
    pages = [kernel.journal.read()]
    while not pages[-1].is_last:
        assert len(pages) < 20, "the same piece is read again and again"
        before = pages[-1]
        offset = before.entries[-1].end if before.entries else 0
        pages.append(kernel.journal.read(after=before.read, offset=offset))
    assert pages[0].first > 1
    assert [msg_id for page in pages for msg_id in page.ids][-1] == last
    data = "".join(entry.data for page in pages for entry in page.entries)
    assert "ab" * 800_000 in data


def test_a_long_message_comes_in_pieces() -> None:
    kernel = Publisher(memory_bytes=10_000_000)
    kernel.run("r1", "ab" * 1_000_000, "short")
    pages = read_all(kernel.journal)
    pieces = [entry for page in pages for entry in page.entries if entry.number == 2]
    assert len(pieces) == 4
    data = "".join(piece.data for piece in pieces)
    assert json.loads(data[-pieces[0].lengths[3] :])["text"] == "ab" * 1_000_000
    assert pages[-1].read == 4
    assert all(len(json.dumps(encode(page))) < 1 << 20 for page in pages)


def test_a_message_larger_than_the_ring_marks_its_request_as_cut() -> None:
    kernel = Publisher(memory_bytes=100_000)
    cell = {"msg_id": "r1", "session": "s", "msg_type": "execute_request"}
    kernel.publish("display_data", cell, data={"text/plain": "x" * 200_000})
    assert [page.ids for page in read_all(kernel.journal)] == [()]
    kernel.run("r1", "small")
    kernel.run("r2", "small")
    assert [entry.is_cut for entry in kernel.journal.read().entries] == [True] * 3 + [False] * 3


def test_a_request_that_began_before_the_journal_is_cut() -> None:
    """The journal of a new agent begins in the middle of a cell."""
    kernel = Publisher()
    cell = {"msg_id": "r1", "session": "s", "msg_type": "execute_request"}
    kernel.publish("stream", cell, name="stdout", text="the rest")
    kernel.publish("status", cell, execution_state="idle")
    kernel.run("r2", "whole")
    assert [entry.is_cut for entry in kernel.journal.read().entries] == [True] * 2 + [False] * 3


def test_the_end_of_a_very_long_text_is_kept() -> None:
    kernel = Publisher(memory_bytes=100_000)
    kernel.run("r1", "x" * 200_000 + "end")
    entries = kernel.journal.read().entries
    assert all(entry.is_cut for entry in entries)
    assert json.loads(split(entries[1])[3])["text"] == "x" * 12_497 + "end"


def test_the_ring_forgets_the_oldest_messages() -> None:
    kernel = Publisher(memory_bytes=10_000)
    kernel.run("old", "x" * 4_000)
    newest = kernel.run("new", "x" * 7_000)
    page = kernel.journal.read()
    assert page.ids[-1] == newest[-1]
    assert page.first > 1
    assert len(page.ids) == page.last - page.first + 1
    assert kernel.ids(session="s", since_s=1_000)[-1] == newest[-1]


def test_only_requests_of_a_session_that_are_new_enough_are_chosen() -> None:
    kernel = Publisher()
    kernel.run("early", "1")
    kernel.run("theirs", "2", session="other")
    kernel.clock.advance(60)
    late = kernel.run("late", "3")
    running = kernel.publish(
        "status", {"msg_id": "r", "session": "s", "msg_type": "execute_request"}, execution_state="busy"
    )
    kernel.clock.advance(30)
    assert kernel.ids(session="s", since_s=31) == [*late, running]
    assert kernel.ids(session="s", since_s=29) == [running]
    assert len(kernel.ids(session="s")) == 7
    assert kernel.journal.read(session="s", since_s=29).is_last


class Question:
    """A question to a kernel, and whether it has been answered and closed."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.is_closed = False

    async def answered(self) -> None:
        await self.answer.wait()

    def close(self) -> None:
        self.is_closed = True


async def test_a_kernel_of_an_earlier_agent_is_not_idle_before_it_answers() -> None:
    kernel, question = Publisher(), Question()
    with zmq.Context() as context:
        kernel.journal.follow(context.socket(zmq.SUB), question)  # type: ignore[arg-type]
        kernel.run("nudge", kind="kernel_info_request")  # on the control channel, during a cell
        kernel.clock.advance(50)
        assert (kernel.journal.state, kernel.journal.idle_s) == ("", 0)
        question.answer.set()
        await asyncio.sleep(0.01)
        kernel.clock.advance(7)
        assert (kernel.journal.state, kernel.journal.idle_s) == ("idle", 7)
        assert question.is_closed
        await kernel.journal.close()


async def test_the_cell_of_an_earlier_agent_tells_its_end() -> None:
    kernel, question = Publisher(), Question()
    with zmq.Context() as context:
        kernel.journal.follow(context.socket(zmq.SUB), question)  # type: ignore[arg-type]
        cell = {"msg_id": "r", "session": "s", "msg_type": "execute_request"}
        kernel.publish("status", cell, execution_state="idle")
        kernel.run("next", kind="execute_request")
        kernel.publish("status", {**cell, "msg_id": "last"}, execution_state="busy")
        question.answer.set()
        await asyncio.sleep(0.01)
        assert (kernel.journal.state, kernel.journal.idle_s) == ("busy", 0)
        await kernel.journal.close()


def test_the_state_is_that_of_the_work_of_people() -> None:
    kernel = Publisher()
    assert kernel.journal.state == ""
    kernel.run("asked", kind="kernel_info_request")
    assert kernel.journal.state == "idle"
    kernel.clock.advance(50)
    assert kernel.journal.idle_s == 50
    cell = {"msg_id": "r", "session": "s", "msg_type": "execute_request"}
    kernel.publish("status", cell, execution_state="busy")
    kernel.clock.advance(50)
    kernel.run("asked again", kind="kernel_info_request")
    assert (kernel.journal.state, kernel.journal.idle_s) == ("busy", 0)
    kernel.publish("status", cell, execution_state="idle")
    kernel.clock.advance(7)
    assert (kernel.journal.state, kernel.journal.idle_s) == ("idle", 7)


def test_buffers_and_texts_of_all_languages_are_kept() -> None:
    kernel = Publisher()
    kernel.publish("display_data", {"msg_id": "r"}, (b"\x00\xff", b""), data={"text/plain": "čšž 漢字"})
    (entry,) = kernel.journal.read().entries
    assert split(entry)[4:] == ["AP8=", ""]
    assert json.loads(split(entry)[3]) == {"data": {"text/plain": "čšž 漢字"}}


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"topic"],
        [b"<IDS|MSG>"],
        [b"<IDS|MSG>", b"s", b"{", b"{}", b"{}", b"{}"],
        [b"<IDS|MSG>", *[b"7"] * 5],
    ],
)
def test_what_is_no_message_is_left_out(frames: list[bytes]) -> None:
    journal = Journal(JournalLimits())
    journal.add(frames)
    assert journal.read().ids == ()


def test_nothing_is_kept_if_nothing_may_be() -> None:
    kernel = Publisher(memory_bytes=0)
    kernel.run("r1", "text")
    assert [page.ids for page in read_all(kernel.journal)] == [()]
    assert kernel.journal.state == "idle"
