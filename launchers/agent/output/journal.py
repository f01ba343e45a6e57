"""The journal of one kernel: the latest messages that it has published on IOPub, in rings of bounded size.

A Jupyter Server that comes back reads there the messages that it has missed. The journal is one more
subscriber of the kernel's IOPub. Requests and replies go straight between the kernel and its clients.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import zmq

from roost.launchers.agent.machine.ports import find_host
from roost.launchers.daemon.tasks import cancel_all, spawn
from roost.launchers.protocol.messages import Connection, JournalEntry, JournalLimits, JournalPage

from .journal_file import Entry, JournalFile
from .subscription import subscribe

log = logging.getLogger(__name__)

_DELIMITER = b"<IDS|MSG>"
_PARTS = 5
"""The parts of a message after the delimiter: signature, header, parent header, metadata, content. Buffers follow."""
_PAGE_CHARACTERS = 1 << 19
"""A page has at most this much text. As JSON it may be twelve times longer, and an answer has at most 8 MiB."""
_BLOCK_BYTES = 1 << 20
"""The size of a block in the file, or a quarter of the journal's memory if that is less."""
_PAGE_BLOCKS = 8
"""A page has entries of at most this many blocks, so that reading it does not keep the agent from other work."""
_TURN = 50
"""At most this many messages are read before other work of the agent gets its turn."""
_GATHER_S = 0.02
"""How long to wait after a first message, so that more messages can be read at once."""
_ACTIVE = frozenset({"execute_request", "inspect_request", "complete_request", "comm_msg", "comm_open"})
"""Requests that are the work of a person. The others, such as kernel_info_request, are the traffic of programs."""


@dataclass(slots=True)
class _Request:
    """A Jupyter request with messages in the journal.

    `ended_at` is set once the kernel is idle again. `is_cut` is true if messages of the request are missing.
    """

    session: str
    kind: str
    ended_at: float | None = None
    is_cut: bool = False


class Journal:
    """A journal: the latest messages in memory, and the ones before them in a file, over all restarts of the kernel.

    `state` is `busy` while the kernel works for a person, and empty before it has published anything.
    """

    def __init__(self, limits: JournalLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._entries: deque[Entry] = deque()
        self._file = JournalFile(limits.disk_bytes) if limits.disk_bytes else None
        self._requests: dict[str, _Request] = {}
        self._size_bytes = 0
        self._next = 1
        self._parent: tuple[bytes, str, _Request | None] = (b"", "", None)
        self._active_at = clock()
        self._encoded: tuple[int, str, tuple[int, ...]] = (0, "", ())
        self._tasks: set[asyncio.Task[Any]] = set()
        self.state = ""

    @property
    def idle_s(self) -> float:
        """Seconds since the kernel last worked for a person; 0 while it does."""
        return 0.0 if self.state == "busy" else self._clock() - self._active_at

    def follow(self, output: zmq.Socket[bytes]) -> None:
        """Record the messages of this subscription and close it in the end. The previous subscription, if any, ends."""
        for task in self._tasks:
            task.cancel()
        self.state = ""
        self._active_at = self._clock()
        reading = spawn(self._read_messages(output), self._tasks, log)
        # A callback also runs if the reading is cancelled before it begins.
        reading.add_done_callback(lambda _: output.close(linger=0))

    async def close(self) -> None:
        await cancel_all(self._tasks)
        if self._file is not None:
            self._file.close()

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
                room -= len(piece.data)
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
        first = self._file.first if self._file is not None else None
        if first is None:
            first = self._entries[0].number if self._entries else self._next
        return first

    def _entries_after(self, number: int) -> Iterator[Entry]:
        """Yield the entries after a number, but only those of the first blocks if many blocks are in the file."""
        if self._file is not None:
            blocks = self._file.blocks_after(number)
            for block in itertools.islice(blocks, _PAGE_BLOCKS):
                yield from (entry for entry in block if entry.number > number)
            if next(blocks, None) is not None:
                return
        yield from (entry for entry in self._entries if entry.number > number)

    def _cut_piece(self, entry: Entry, offset: int, room: int, *, is_cut: bool) -> JournalEntry:
        if self._encoded[0] != entry.number:  # a long message is read in many pieces
            self._encoded = entry.number, *_encode(entry)
        _, data, lengths = self._encoded
        piece = data[offset : offset + room]
        return JournalEntry(number=entry.number, lengths=lengths, offset=offset, data=piece, is_cut=is_cut)

    def _is_chosen(self, request: _Request | None, session: str, cutoff: float | None) -> bool:
        if not session and cutoff is None:
            return True
        if request is None or (session and request.session != session):
            return False
        return cutoff is None or request.ended_at is None or request.ended_at >= cutoff

    def add(self, frames: Sequence[bytes]) -> None:
        """Add a message of the kernel, given by its ZeroMQ frames.

        Ignore frames that are no Jupyter message.
        """
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            start = frames.index(_DELIMITER) + 1
            self._add(tuple(frames[start + 1 :]))

    def _add(self, parts: tuple[bytes, ...]) -> None:
        if len(parts) < _PARTS - 1:
            return
        header = json.loads(parts[0])
        kind = header["msg_type"]
        request_id, request = self._find_request(parts[1], kind)
        ends_request = False
        limit_bytes = max(self._limits.memory_bytes, self._limits.disk_bytes)
        if kind == "stream" and len(parts[3]) > limit_bytes * 3 // 4:
            parts = _shorten(parts, limit_bytes // 8)
            if request is not None:
                request.is_cut = True
        if kind == "status":
            state = json.loads(parts[3])["execution_state"]
            ends_request = state == "idle" and request is not None
            self._note_state(state, request)
        elif request is not None and request.kind in _ACTIVE:
            self._active_at = self._clock()
        size_bytes = sum(map(len, parts)) + 200  # of the objects around the parts
        entry = Entry(self._next, header["msg_id"], request_id, parts, size_bytes, kind, ends_request)
        self._next += 1
        self._entries.append(entry)
        self._size_bytes += size_bytes
        while self._size_bytes > self._limits.memory_bytes and self._entries:
            self._make_room()

    def _make_room(self) -> None:
        """Move the oldest entries from memory to the file. Without a file, drop the oldest entry."""
        if self._file is None:
            moved = gone = [self._entries.popleft()]
        else:
            room_bytes = min(_BLOCK_BYTES, self._limits.memory_bytes // 4)
            moved = []
            while self._entries and (room_bytes > 0 or not moved):
                moved.append(self._entries.popleft())
                room_bytes -= moved[-1].size_bytes
            gone = self._file.add(moved)
        self._size_bytes -= sum(entry.size_bytes for entry in moved)
        for entry in gone:
            self._forget(entry)

    def _find_request(self, parent: bytes, kind: str) -> tuple[str, _Request | None]:
        """Return the id and the record of a message's request.

        `parent` is the message's parent header, and `kind` its own type. Without a request, the id is empty and the
        record is None. A request whose first message is no status has begun before the journal, or before its oldest
        entry.
        """
        if parent != self._parent[0]:
            header = json.loads(parent) or {}  # xeus sends null
            request_id = str(header.get("msg_id", ""))
            request = self._requests.get(request_id)
            if request is None and request_id:
                request = _Request(
                    session=str(header.get("session", "")),
                    kind=str(header.get("msg_type", "")),
                    is_cut=kind != "status",
                )
                self._requests[request_id] = request
            self._parent = parent, request_id, request
        return self._parent[1], self._parent[2]

    def _note_state(self, state: str, request: _Request | None) -> None:
        if request is not None and state == "idle":
            request.ended_at = self._clock()
        if request is not None and request.kind in _ACTIVE:
            self.state = state
            self._active_at = self._clock()
        elif not self.state:
            self.state = "idle"  # it answers programs

    def _forget(self, entry: Entry) -> None:
        if entry.ends_request:
            self._requests.pop(entry.request_id, None)
        elif entry.kind not in ("status", "execute_input") and entry.request_id in self._requests:
            self._requests[entry.request_id].is_cut = True

    async def _read_messages(self, socket: zmq.Socket[bytes]) -> None:
        """Add messages to the journal, many at a time: a kernel that prints fast needs the processor itself."""
        loop, file = asyncio.get_running_loop(), int(socket.getsockopt(zmq.FD))
        while True:
            if self._read_turn(socket):
                await asyncio.sleep(0)
                continue
            something = asyncio.Event()
            loop.add_reader(file, something.set)
            try:
                await something.wait()
            finally:
                loop.remove_reader(file)  # it stays readable until the messages are read
            await asyncio.sleep(_GATHER_S)

    def _read_turn(self, socket: zmq.Socket[bytes]) -> bool:
        """Add up to `_TURN` messages. Return False if no more are there: the next one makes the socket readable."""
        try:
            for _ in range(_TURN):
                self.add(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return False
        return True


def _shorten(parts: tuple[bytes, ...], length: int) -> tuple[bytes, ...]:
    """Return a stream message with only the last `length` characters of its text."""
    content = json.loads(parts[3])
    content["text"] = content["text"][-length:] if length else ""
    return (*parts[:3], json.dumps(content).encode(), *parts[4:])


def _encode(entry: Entry) -> tuple[str, tuple[int, ...]]:
    """Return the text of a message's parts, and their lengths."""
    texts = [part.decode(errors="replace") for part in entry.parts[: _PARTS - 1]]
    texts += [base64.b64encode(part).decode() for part in entry.parts[_PARTS - 1 :]]
    return "".join(texts), tuple(map(len, texts))


def subscribe_to(connection: Connection, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Subscribe to a kernel whose IOPub port is open."""
    if connection.transport == "ipc":
        endpoint = f"ipc://{connection.ip}-{connection.iopub_port}"
    else:
        host = find_host(connection)
        endpoint = f"tcp://{f'[{host}]' if ':' in host else host}:{connection.iopub_port}"
    return subscribe(context, endpoint, connection.curve_publickey, connection.curve_secretkey)
