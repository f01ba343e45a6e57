"""The replay for a client that comes back: the missed messages of its kernel, then the live ones.

The missed messages are in the journal of the kernel's agent. A client does not say which messages it has.
Therefore the replay repeats, from the beginning, the messages for each request of the client that still runs
or has ended meanwhile. A `clear_output` after `execute_input` removes the outputs that the client shows
already. The reply to a request was lost with the old connection, so the replay builds a reply from the
messages.

The replay holds the kernel's live messages until the journal has the first of them. The client gets the
messages before that one from the journal, and then the live messages. It gets no message twice.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from roost.provisioners.journal_reader import JournalMessage, JournalReader
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Header, JournalPage, read_content

AWAY_MARGIN_S = 10.0
"""The replay also repeats requests that ended at most this long before the connection was lost."""
_ASK_AGAIN_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""How long the replay pauses between two readings of the journal before the first live message has arrived."""
_LAG_S = 3.0
"""How much later than a live message its copy may appear in the journal."""
_JOINED_BYTES = 1 << 20
"""Texts of one stream are joined up to this length."""
_LOST = "[roost: the beginning of this output was not kept in the journal of the kernel]\n"


@dataclass(slots=True)
class _CellState:
    """The state of a cell of the client. The replay repeats the messages for this cell."""

    is_cut: bool = False
    execution_count: int | None = 0
    error: Mapping[str, Any] | None = None


@dataclass(slots=True)
class _Text:
    """Text of one stream and cell that is joined before it is sent."""

    header: Header
    parent: Header
    name: str
    pieces: list[str] = field(default_factory=list)
    length: int = 0


class Replay:
    """The replay for one connection. `hold` gets the live messages of IOPub until `is_through`."""

    def __init__(self, connection: Any, provisioner: RoostProvisioner, away_s: float | None) -> None:
        self._connection = connection
        self._reader = JournalReader(provisioner.service, connection.kernel_id)
        self._session = connection.session.session
        self._away_s = away_s
        self._held: list[tuple[str, list[bytes]]] = []
        self._has_live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._known: set[str] = set()
        self._sent: set[str] = set()
        self._cells: dict[str, _CellState] = {}
        self._replied: set[str] = set()
        self._asked: set[str] = set()
        self._text: _Text | None = None
        self.is_over = False

    @property
    def is_through(self) -> bool:
        """True once no live message can repeat a message of the replay."""
        return self.is_over and not self._sent

    def hold(self, msg_id: str, message: list[bytes]) -> bool:
        """Hold or drop a live IOPub message and return True. Return False if the caller must send it.

        `msg_id` is empty for a message that the journal leaves out.
        """
        if not self.is_over:
            self._held.append((msg_id, message))
            if msg_id and not self._has_live.done():
                self._has_live.set_result(None)
            return True
        if msg_id in self._sent:
            return True
        if not msg_id:  # the journal has no such message
            return False
        self._sent.clear()  # both have the same order, so none of the others comes again
        return False

    def note_request(self, request_id: str) -> None:
        """Note a request that the client sends on this connection: it shows no earlier output of that cell."""
        self._asked.add(request_id)

    def note_reply(self, request_id: str) -> bool:
        """Note a reply to a request. Return False if the client already has a reply to it."""
        if not request_id:
            return True
        is_new = request_id not in self._replied
        self._replied.add(request_id)
        return is_new

    async def run(self) -> None:
        """Send the missed messages, then the held ones."""
        try:
            await self._send_missed()
        except (RoostError, asyncio.TimeoutError) as problem:
            self._connection.log.warning(
                "kernel=%s missed output cannot be read: %s", self._connection.kernel_id, problem
            )
        finally:
            self._flush()
            self.is_over = True
            for msg_id, message in self._held:
                if msg_id not in self._sent:
                    self._connection.send_live(message)
            self._held.clear()
            self._known.clear()

    async def _send_missed(self) -> None:
        """Send the missed messages up to the first live one."""
        began = time.monotonic()
        after, end = 0, math.inf
        while after < end:
            since_s = None if self._away_s is None else self._away_s + time.monotonic() - began
            page = await self._reader.read(session=self._session, since_s=since_s)
            end = min(end, page.last)
            after = page.read
            await self._send(page)
        await self._join()

    async def _join(self) -> None:
        """Send the journal's new entries until they include the first live message, or `_LAG_S` has passed."""
        pauses = iter(_ASK_AGAIN_S)
        pause_s, late_at = 0.0, math.inf
        while True:
            page = await self._reader.read()
            await self._send(page)
            first = next((msg_id for msg_id, _ in self._held if msg_id), "")
            if first in self._known:
                return
            if not page.is_last:
                continue
            if first:
                late_at = min(late_at, time.monotonic() + _LAG_S)
                if time.monotonic() > late_at:
                    log = self._connection.log
                    log.warning(
                        "kernel=%s its journal is late: output may be missing", self._connection.kernel_id
                    )
                    return
                await asyncio.sleep(0.02)
            else:
                pause_s = next(pauses, pause_s)
                self._connection.probe()
                await asyncio.wait([self._has_live], timeout=pause_s)

    async def _send(self, page: JournalPage) -> None:
        self._known.update(page.ids)
        for message in self._reader.messages(page):
            self._send_message(message)
        self._flush()
        await self._connection.drain()

    def _send_message(self, message: JournalMessage) -> None:
        parent, kind, msg_id = message.parent, message.header.kind, message.header.msg_id
        content = read_content(kind, message.content)
        if msg_id in self._sent:
            return
        self._sent.add(msg_id)
        cell = self._find_cell(message)
        if kind == "stream":
            self._join_text(message)
            return
        self._flush()
        if cell is not None and kind == "status" and content["execution_state"] == "idle":
            self._reply(cell, parent)
        self._connection.write_parts("iopub", message.parts)
        if cell is not None and kind == "execute_input":
            cell.execution_count = content["execution_count"]
            self._begin_again(cell, parent)
        elif cell is not None and kind == "error":
            cell.error = content

    def _find_cell(self, message: JournalMessage) -> _CellState | None:
        """Return the cell of this client to which the message belongs, or None if there is none."""
        parent = message.parent
        if parent.session != self._session or parent.kind != "execute_request" or not parent.msg_id:
            return None
        cell = self._cells.setdefault(parent.msg_id, _CellState())
        if message.is_cut and not cell.is_cut:
            cell.is_cut = True
            if message.header.kind not in ("status", "execute_input"):
                self._flush()
                self._begin_again(cell, parent)
        return cell

    def _begin_again(self, cell: _CellState, parent: Header) -> None:
        """Clear a cell's output in the client, before the replay sends the cell's messages from the beginning.

        A new cell shows nothing but what roost has said in it.
        """
        if parent.msg_id not in self._asked:
            self._speak("clear_output", {"wait": False}, parent)
        if cell.is_cut:
            self._speak("stream", {"name": "stderr", "text": _LOST}, parent)

    def _reply(self, cell: _CellState, parent: Header) -> None:
        """Send a reply to a cell, built from its messages, unless the kernel's own reply has arrived."""
        if not self.note_reply(parent.msg_id):
            return
        content: dict[str, Any] = {"status": "ok", "execution_count": cell.execution_count}
        content |= {"user_expressions": {}, "payload": []}
        if cell.error is not None:
            content |= {"status": "error", **cell.error}
        self._connection.speak("shell", "execute_reply", content, parent.fields)

    def _join_text(self, message: JournalMessage) -> None:
        """Join the text of a stream with the text before it."""
        content, parent = read_content("stream", message.content), message.parent
        name, text = content["name"], content["text"]
        before = self._text
        if (
            before is None
            or (before.parent.msg_id, before.name) != (parent.msg_id, name)
            or before.length > _JOINED_BYTES
        ):
            self._flush()
            before = self._text = _Text(header=message.header, parent=parent, name=name)
        before.pieces.append(text)
        before.length += len(text)

    def _flush(self) -> None:
        """Send the client the text that was joined from several messages, as one message."""
        text, self._text = self._text, None
        if text is not None:
            content = {"name": text.name, "text": "".join(text.pieces)}
            parts = [text.header.fields, text.parent.fields, {}, content]
            self._connection.write_parts("iopub", [json.dumps(part).encode() for part in parts])

    def _speak(self, kind: str, content: Mapping[str, Any], parent: Header) -> None:
        self._connection.speak("iopub", kind, content, parent.fields)


def find_away_s(km: Any) -> float | Literal[False] | None:
    """Return how many seconds of messages the clients of an adopted kernel may have missed.

    Return None if that time is not known, and False if this server has not adopted the kernel but started it.
    """
    adopted_at = getattr(km, "adopted_at", None)
    if adopted_at is None:
        return False
    unheld_s: float | None = km.provisioner.unheld_s
    return None if unheld_s is None else unheld_s + time.monotonic() - adopted_at + AWAY_MARGIN_S
