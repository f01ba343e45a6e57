"""The journal of one kernel: the latest messages that it has published on IOPub, in a ring of bounded size.

A Jupyter Server that comes back reads there the messages that it has missed. The journal is one more
subscriber of the kernel's IOPub. Requests and replies go straight between the kernel and its clients.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import zmq

from roost.launchers.agent.machine.ports import find_endpoint
from roost.launchers.daemon.tasks import cancel_all, spawn
from roost.launchers.protocol.kernel_message import (
    NO_HEADER,
    Header,
    UnreadableMessage,
    find_parts,
    read_fields,
    read_header,
    read_parent,
    read_state,
)
from roost.launchers.protocol.messages import Connection, JournalEntry, JournalLimits, JournalPage

from .state_question import StateQuestion
from .subscription import subscribe

log = logging.getLogger(__name__)

_JSON_PARTS = 4
"""The parts of a message after its signature: header, parent header, metadata, content. Buffers follow."""
_PAGE_CHARACTERS = 1 << 19
"""A page has at most this much text. As JSON it may be twelve times longer, and an answer has at most 8 MiB."""
_ENTRY_CHARACTERS = 20
"""The part of a page's text that an entry takes besides its message, its id and its lengths."""
_TURN = 50
"""At most this many messages are read before other work of the agent gets its turn."""
_TURN_S = 0.01
"""After this time the turn ends, if the messages are long."""
_GATHER_S, _SHORT_GATHER_S = 0.02, 0.005
"""How long to wait after a first message, so that more messages can be read at once.

The wait is short after many messages, or the kernel would lose messages that it publishes very fast.
"""
_ACTIVE = frozenset({"execute_request", "inspect_request", "complete_request", "comm_msg", "comm_open"})
"""Requests that are the work of a person. The others, such as kernel_info_request, are the traffic of programs."""
_REMEMBERED = 16
"""How many requests without an entry are remembered while they run. A kernel seldom runs more than one."""
_ENTRY_BYTES, _PART_BYTES = 480, 48
"""The memory of the objects of a message with four parts, and of each further part."""
_RECORD_BYTES = 190
"""The memory of a record and of its place in a dictionary, without its two texts (CPython 3.11, 64 bit)."""
_LONGEST_CACHED_BYTES = 4_096
"""A longer parent header is read again for each message."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in a journal. `parts` are those after its signature; `number` counts a kernel's messages from 1."""

    number: int
    msg_id: str
    request_id: str
    parts: tuple[bytes, ...]
    size_bytes: int
    kind: str


@dataclass(slots=True)
class _Request:
    """A Jupyter request with messages in the journal.

    `entries` counts its messages. `ended_at` is set once the kernel is idle again. `is_cut` is true if messages of the
    request are missing.
    """

    session: str
    is_cut: bool
    entries: int = 0
    ended_at: float | None = None


class Journal:
    """A journal: the latest messages, over all restarts of the kernel.

    A request has a record as long as the journal has one of its messages. Records count towards the journal's memory.

    `state` is `busy` while the kernel works for a person, and empty before it has published anything. It is empty too
    while a kernel of an earlier agent has not told whether it works.
    """

    def __init__(self, limits: JournalLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._entries: deque[Entry] = deque()
        self._requests: dict[str, _Request] = {}
        self._gone: dict[str, _Request] = {}  # requests that run, and have no entry any more
        self._size_bytes = 0
        self._records_bytes = 0
        self._next = 1
        self._parent: tuple[bytes, Header] = (b"null", NO_HEADER)
        self._active_at = clock()
        self._encoded: tuple[int, str, tuple[int, ...]] = (0, "", ())
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_asked = False
        """True while the state waits for the answer of a kernel of an earlier agent."""
        self.state = ""

    @property
    def idle_s(self) -> float:
        """Seconds since the kernel last worked for a person; 0 while it does, or may do so."""
        return 0.0 if self.state == "busy" or self._is_asked else self._clock() - self._active_at

    def follow(self, output: zmq.Socket[bytes], question: StateQuestion | None = None) -> None:
        """Record the messages of this subscription and close it in the end. The previous subscription, if any, ends.

        A kernel of an earlier agent has been asked a `question`: its state is not known before it answers.
        """
        for task in self._tasks:
            task.cancel()
        self._is_asked = question is not None
        self.state = ""
        self._active_at = self._clock()
        reading = spawn(self._read_messages(output), self._tasks, log)
        # A callback also runs if the reading is cancelled before it begins.
        reading.add_done_callback(lambda _: output.close(linger=0))
        if question is not None:
            asking = spawn(self._await_answer(question), self._tasks, log)
            asking.add_done_callback(lambda _: question.close())

    async def close(self) -> None:
        await cancel_all(self._tasks)

    def read(
        self, *, after: int = 0, offset: int = 0, session: str = "", since_s: float | None = None
    ) -> JournalPage:
        """Return a page of the entries after number `after`.

        If the previous page ended within the first of these entries, `offset` is the place where its rest
        begins.

        With a `session`, only the messages for requests of that session are returned. With `since_s`, only
        those for requests that still run, or have ended in the last `since_s` seconds.
        """
        cutoff = None if since_s is None else self._clock() - since_s
        chosen: list[JournalEntry] = []
        ids = []
        room = _PAGE_CHARACTERS
        for entry in self._entries_after(after):
            if room <= 0:
                break
            request = self._requests.get(entry.request_id)
            if self._is_chosen(request, session, cutoff):
                is_cut = request is not None and request.is_cut
                piece = self._cut_piece(
                    entry, offset if entry.number == after + 1 else 0, room, is_cut=is_cut
                )
                chosen.append(piece)
                if piece.end:
                    after = entry.number - 1  # also if the journal has dropped those before it
                    break
                room -= len(piece.data) + len(piece.lengths) + _ENTRY_CHARACTERS
            room -= len(entry.msg_id) + 1
            after, offset = entry.number, 0
            ids.append(entry.msg_id)
        if not ids and not chosen:  # the rest of the messages is not kept
            after = self._next - 1
        return JournalPage(
            entries=tuple(chosen),
            ids=tuple(ids),
            first=self._first,
            read=after,
            last=self._next - 1,
            state=self.state,
        )

    @property
    def _first(self) -> int:
        return self._entries[0].number if self._entries else self._next

    def _entries_after(self, number: int) -> Iterator[Entry]:
        """Return the entries after a number."""
        return (entry for entry in self._entries if entry.number > number)

    def _cut_piece(self, entry: Entry, offset: int, room: int, *, is_cut: bool) -> JournalEntry:
        if self._encoded[0] != entry.number:  # a long message is read in many pieces
            self._encoded = entry.number, *_encode(entry)
        _, data, lengths = self._encoded
        piece = data[offset : offset + room]
        found = JournalEntry(number=entry.number, lengths=lengths, offset=offset, data=piece, is_cut=is_cut)
        if not found.end:
            self._encoded = (0, "", ())
        return found

    def _is_chosen(self, request: _Request | None, session: str, cutoff: float | None) -> bool:
        if not session and cutoff is None:
            return True
        if request is None or (session and request.session != session):
            return False
        return cutoff is None or request.ended_at is None or request.ended_at >= cutoff

    def add(self, frames: Sequence[bytes]) -> None:
        """Add a message of the kernel, given by its ZeroMQ frames. Leave it out if it cannot be read."""
        with suppress(UnreadableMessage):
            self._add(find_parts(frames))

    def _add(self, parts: tuple[bytes, ...]) -> None:
        header, parent = read_header(parts[0]), self._read_parent(parts[1])
        limit_bytes = self._limits.memory_bytes
        is_shortened = header.kind == "stream" and len(parts[3]) > limit_bytes * 3 // 4
        if is_shortened:
            parts = _shorten(parts, limit_bytes // 8)
        request = self._find_request(parent, header.kind)
        if request is not None and is_shortened:
            request.is_cut = True
        if header.kind == "status" and (state := read_state(parts[3])):
            self._note_state(state, parent, request)
        elif request is not None and parent.kind in _ACTIVE:
            self._active_at = self._clock()
        size_bytes = sum(map(len, parts)) + _ENTRY_BYTES + _PART_BYTES * (len(parts) - _JSON_PARTS)
        number, self._next = self._next, self._next + 1
        kind = sys.intern(header.kind)
        self._entries.append(Entry(number, header.msg_id, parent.msg_id, parts, size_bytes, kind))
        self._size_bytes += size_bytes
        if request is not None:
            request.entries += 1
        self._make_room()

    def _make_room(self) -> None:
        """Drop the oldest entries until entries and records are within the limit."""
        while self._size_bytes + self._records_bytes > self._limits.memory_bytes and self._entries:
            self._forget(self._entries.popleft())

    def _read_parent(self, part: bytes) -> Header:
        if part != self._parent[0]:
            parent = read_parent(part)
            if len(part) > _LONGEST_CACHED_BYTES:
                return parent
            self._parent = part, parent
        return self._parent[1]

    def _find_request(self, parent: Header, kind: str) -> _Request | None:
        """Return the record of a message's request; None without a request.

        `kind` is the message's own type. A request whose first message is no status has begun before the journal, or
        before its oldest entry.
        """
        request_id = parent.msg_id
        if not request_id:
            return None
        request = self._requests.get(request_id)
        if request is None:
            request = self._gone.pop(request_id, None)
            if request is None:
                request = _Request(parent.session, is_cut=kind != "status")
            self._requests[request_id] = request
            self._records_bytes += _measure_record(request_id, request)
        return request

    def _note_state(self, state: str, parent: Header, request: _Request | None) -> None:
        if request is not None and state == "idle":
            request.ended_at = self._clock()
        if request is not None and parent.kind in _ACTIVE:
            self.state = state
            self._active_at = self._clock()
            self._is_asked = False
        elif not self.state and not self._is_asked:  # the control channel answers programs during a cell, too
            self.state = "idle"  # it answers programs

    async def _await_answer(self, question: StateQuestion) -> None:
        await question.answered()
        if self._is_asked:
            self._is_asked = False
            self.state = "idle"
            self._active_at = self._clock()

    def _forget(self, entry: Entry) -> None:
        """Adjust sizes and records to an entry that has left the ring."""
        self._size_bytes -= entry.size_bytes
        if entry.number == self._encoded[0]:
            self._encoded = (0, "", ())
        request = self._requests.get(entry.request_id)
        if request is None:
            return
        request.entries -= 1
        if entry.kind not in ("status", "execute_input"):
            request.is_cut = True
        if request.entries <= 0:
            self._forget_request(entry.request_id, request)

    def _forget_request(self, request_id: str, request: _Request) -> None:
        """Forget a request without entries. If it still runs, remember for some time that a part of it is gone."""
        del self._requests[request_id]
        self._records_bytes -= _measure_record(request_id, request)
        if request.ended_at is None:
            self._gone[request_id] = request
            if len(self._gone) > _REMEMBERED:
                del self._gone[next(iter(self._gone))]

    async def _read_messages(self, socket: zmq.Socket[bytes]) -> None:
        """Add messages to the journal, many at a time: a kernel that prints fast needs the processor itself."""
        loop, file = asyncio.get_running_loop(), int(socket.getsockopt(zmq.FD))
        while True:
            gather_s = _GATHER_S
            while self._read_turn(socket):
                gather_s = _SHORT_GATHER_S
                await asyncio.sleep(0)
            something = asyncio.Event()
            loop.add_reader(file, something.set)
            try:
                await something.wait()
            finally:
                loop.remove_reader(file)  # it stays readable until the messages are read
            await asyncio.sleep(gather_s)

    def _read_turn(self, socket: zmq.Socket[bytes]) -> bool:
        """Add up to `_TURN` messages. Return False if no more are there: the next one makes the socket readable."""
        until = time.monotonic() + _TURN_S
        try:
            for _ in range(_TURN):
                self.add(socket.recv_multipart(zmq.NOBLOCK))
                if time.monotonic() > until:
                    break
        except zmq.Again:
            return False
        return True


def _measure_record(request_id: str, request: _Request) -> int:
    return _RECORD_BYTES + sys.getsizeof(request_id) + sys.getsizeof(request.session)


def _shorten(parts: tuple[bytes, ...], length: int) -> tuple[bytes, ...]:
    """Return a stream message with only the last `length` characters of its text. Raises `UnreadableMessage`."""
    content = read_fields(parts[3])
    text = content.get("text")
    if not isinstance(text, str):
        raise UnreadableMessage("a stream without text")
    short = {"name": content.get("name"), "text": text[-length:] if length else ""}
    return (*parts[:3], json.dumps(short).encode(), *parts[4:])


def _encode(entry: Entry) -> tuple[str, tuple[int, ...]]:
    """Return the text of a message's parts, and their lengths."""
    texts = [part.decode(errors="replace") for part in entry.parts[:_JSON_PARTS]]
    texts += [base64.b64encode(part).decode() for part in entry.parts[_JSON_PARTS:]]
    return "".join(texts), tuple(map(len, texts))


def subscribe_to(connection: Connection, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Subscribe to a kernel whose IOPub port is open."""
    endpoint = find_endpoint(connection, connection.iopub_port)
    return subscribe(context, endpoint, connection.curve_publickey, connection.curve_secretkey)
