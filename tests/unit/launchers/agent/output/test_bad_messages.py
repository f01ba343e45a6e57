"""The journal leaves out bad messages of a kernel, records later ones, and stays within its bounds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from kit.machine.cases import find_wrong
from roost.launchers.agent.output.journal import Journal
from roost.launchers.protocol.messages import JournalLimits, JournalPage
from roost.placement.model.json_codec import decode, encode

BRACKETS = b"[" * 200_000
DEEP = b'{"a":' * 500 + b"1" + b"}" * 500
HEADER = {"msg_id": "m", "msg_type": "stream"}
CELL = {"msg_id": "cell", "session": "s", "msg_type": "execute_request"}
MOST_ANSWER_BYTES = 8 << 20


def frames(header: Any, parent: Any = None, content: Any = None, *more: bytes) -> list[bytes]:
    parts = [
        part if isinstance(part, bytes) else json.dumps(part).encode()
        for part in (header, parent, {}, content)
    ]
    return [b"topic", b"<IDS|MSG>", b"signature", *parts, *more]


def run_good_cell(journal: Journal, request: str = "good") -> list[str]:
    """Publish the messages of a good cell, and return their ids."""
    parent = {"msg_id": request, "session": "s", "msg_type": "execute_request"}
    contents = [("status", {"execution_state": "busy"}), ("execute_input", {"code": "1"})]
    contents += [("stream", {"name": "stdout", "text": "good"}), ("status", {"execution_state": "idle"})]
    ids = []
    for number, (kind, content) in enumerate(contents):
        ids.append(f"{request}-{number}")
        journal.add(frames({"msg_id": ids[-1], "msg_type": kind}, parent, content))
    return ids


def read_pages(journal: Journal, **choice: Any) -> list[JournalPage]:
    pages = [journal.read(**choice)]
    while not (last := pages[-1]).is_last:
        pages.append(
            journal.read(after=last.read, offset=last.entries[-1].end if last.entries else 0, **choice)
        )
    return pages


def check_page(page: JournalPage) -> None:
    """Check that the page crosses the agent's socket."""
    answer = json.dumps(encode(page)).encode()
    assert len(answer) < MOST_ANSWER_BYTES
    assert decode(JournalPage, json.loads(answer)) == page


STREAM = {"name": "stdout", "text": "bad"}
STATUS = {"msg_id": "m", "msg_type": "status"}
LEFT_OUT = [
    *(
        (header, CELL, STREAM)
        for header in (
            BRACKETS, DEEP, b"", b"{", b"\xff\xfe", [], 7, {}, {"msg_id": "m"},
            {"msg_id": {"a": 1}, "msg_type": "stream"},
            {"msg_id": "m" * 257, "msg_type": "stream"}, {"msg_id": "a\nb\x1b[31m", "msg_type": "stream"},
            {"msg_id": "m", "msg_type": ["stream"]},
        )
    ),
    *((HEADER, parent, STREAM) for parent in (BRACKETS, DEEP, b"", b"{", 7, ["a"], "text")),
    (HEADER, CELL, {}, *[b"ab"] * 200_000),
    (HEADER, CELL, {"text": ["x"] * 100_000, "more": "x" * 100_000}),
    (HEADER, CELL, BRACKETS),
]  # fmt: skip
"""The header, the parent, the content and more parts of messages that no reader could use."""
WITHOUT_REQUEST = [None, {}, [], {"msg_id": 7}, {"msg_id": ["a"], "session": {}}, {"msg_id": "x" * (1 << 20)}]
"""Parents without an id that names a request."""
NO_STATES = [
    BRACKETS,
    b"",
    [],
    {},
    *({"execution_state": each} for each in ({"a": 1}, None, "x" * 999_999, "dead")),
]
"""Contents of a status without a state that Jupyter defines."""


def test_what_no_reader_could_use_is_left_out() -> None:
    def check(parts: tuple[Any, ...]) -> None:
        journal = Journal(JournalLimits(memory_bytes=100_000))
        journal.add(frames(*parts))
        good = run_good_cell(journal)
        page = journal.read()
        assert list(page.ids) == good
        check_page(page)
        assert journal.state == "idle"

    assert find_wrong(LEFT_OUT, check) == []


def test_a_message_whose_parent_has_no_usable_id_belongs_to_no_request() -> None:
    def check(parent: Any) -> None:
        journal = Journal(JournalLimits())
        journal.add(frames(HEADER, parent, STREAM))
        good = run_good_cell(journal)
        pages = read_pages(journal)
        assert [msg_id for page in pages for msg_id in page.ids] == ["m", *good]
        assert len(journal.read(session="s").entries) == len(good)

    assert find_wrong(WITHOUT_REQUEST, check) == []


def test_a_state_that_jupyter_does_not_define_is_none() -> None:
    def check(content: Any) -> None:
        journal = Journal(JournalLimits())
        run_good_cell(journal)
        for state in ("idle", "busy"):
            journal.add(frames(STATUS, CELL, {"execution_state": state}))
            journal.add(frames(STATUS, CELL, content))
            assert journal.state == state

    assert find_wrong(NO_STATES, check) == []


def test_pages_stay_small_for_long_ids_and_many_parts() -> None:
    journal = Journal(JournalLimits())
    for number in range(8_000):
        journal.add(frames({"msg_id": f"{number}".rjust(256, "é"), "msg_type": "stream"}, CELL, {}))
    for number in range(300):
        journal.add(frames({"msg_id": f"{number}", "msg_type": "stream"}, CELL, {}, *[b""] * 900))
    good = run_good_cell(journal)
    for choice in ({}, {"session": "s"}, {"session": "other"}):
        pages = read_pages(journal, **choice)
        for page in pages:
            check_page(page)
        assert [msg_id for page in pages for msg_id in page.ids][-len(good) :] == good


def measure(journal: Journal) -> int:
    """Return the bytes of all that a journal keeps: each object once, without classes, functions and modules."""
    seen: set[int] = set()
    pending: list[Any] = [value for name, value in vars(journal).items() if name != "_clock"]
    total = 0
    while pending:
        each = pending.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        if isinstance(each, dict):
            pending += [*each.keys(), *each.values()]
        elif isinstance(each, Iterable) and not isinstance(each, (str, bytes)):
            pending += list(each)
        else:
            pending += list(getattr(each, "__dict__", {}).values())
            slots = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
            pending += [getattr(each, name) for name in slots if hasattr(each, name)]
    return total


@pytest.mark.parametrize("memory_bytes", [1 << 20, 0])
@pytest.mark.parametrize(
    ("count", "length", "kind"),
    [(40, 1 << 20, "stream"), (5_000, 20, "status"), (4_000, 256, "display_data")],
)
def test_requests_that_never_end_are_forgotten(memory_bytes: int, count: int, length: int, kind: str) -> None:
    journal = Journal(JournalLimits(memory_bytes=memory_bytes))
    most = 0
    for number in range(count):
        parent = {
            "msg_id": str(number).rjust(length, "x"),
            "session": f"s{number}",
            "msg_type": "execute_request",
        }
        journal.add(frames({"msg_id": f"m{number}", "msg_type": kind}, parent, {"execution_state": "busy"}))
        if number == count // 3:
            most = measure(journal)
    # The memory of requests without entries is not counted.
    assert max(most, measure(journal)) < memory_bytes * 1.1 + 400_000
    good = run_good_cell(journal)
    kept = [msg_id for page in read_pages(journal) for msg_id in page.ids]
    assert kept[-len(good) :] == (good if memory_bytes else [])


def test_a_read_message_is_not_kept_twice() -> None:
    journal = Journal(JournalLimits(memory_bytes=4 << 20))
    journal.add(frames(HEADER, CELL, {"name": "stdout", "text": "x" * (2 << 20) + "漢"}))
    pages = read_pages(journal)
    assert len(pages) > 3
    assert measure(journal) < 4 << 20


def test_a_request_is_known_as_long_as_it_has_messages() -> None:
    """Output that a thread prints after the idle status still belongs to its cell."""
    journal = Journal(JournalLimits(memory_bytes=4_000))
    good = run_good_cell(journal)
    parent = {"msg_id": "good", "session": "s", "msg_type": "execute_request"}
    late = []
    for number in range(30):
        late.append(f"late-{number}")
        journal.add(frames({"msg_id": late[-1], "msg_type": "stream"}, parent, {"text": "x"}))
    entries = journal.read(session="s").entries
    assert not set(journal.read().ids) & set(good)
    assert len(entries) == len(journal.read().ids) > 3
    assert all(entry.is_cut for entry in entries)
