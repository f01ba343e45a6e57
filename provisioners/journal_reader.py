"""Reads the journal of a kernel: its messages, and the outputs of its cells."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from roost.scheduler.client.client import Client
from roost.scheduler.messages import (
    JournalEntry,
    JournalPage,
    UnreadableMessage,
    read_content,
    read_display_id,
    read_message,
)

from .execution import add_output

_ANSWER_S = 10.0
_JSON_PARTS = 4


class JournalMessage:
    """A message that a kernel has published, as its journal has it.

    `is_cut` is true if output of the same request is missing, because the journal has dropped it.
    """

    def __init__(self, data: str, entry: JournalEntry) -> None:
        """Raises `UnreadableMessage`."""
        ends = list(itertools.accumulate(entry.lengths))
        texts = [data[end - length : end] for end, length in zip(ends, entry.lengths, strict=True)]
        if len(texts) < _JSON_PARTS:
            raise UnreadableMessage(f"a message of {len(texts)} parts")
        self.parts = [text.encode("utf-8", "replace") for text in texts[:_JSON_PARTS]]
        try:
            self.parts += [base64.b64decode(text) for text in texts[_JSON_PARTS:]]
        except binascii.Error:
            raise UnreadableMessage("a buffer that is not in base64") from None
        message = read_message(self.parts)
        self.header, self.parent, self.content = message.header, message.parent, message.content
        self.is_cut = entry.is_cut


class JournalReader:
    """A reader of one kernel's journal, from its beginning."""

    def __init__(self, client: Client, kernel_id: str) -> None:
        self._client = client
        self._kernel_id = kernel_id
        self._after = 0
        self._offset = 0
        self._pieces: list[str] = []

    async def read(self, session: str = "", since_s: float | None = None) -> JournalPage:
        """Return the next page. `Client.journal` describes which messages `session` and `since_s` choose.

        Raises `RoostError` and `asyncio.TimeoutError`.
        """
        call = self._client.journal(
            self._kernel_id, after=self._after, offset=self._offset, session=session, since_s=since_s
        )
        page = await call.within(_ANSWER_S)
        self._after = page.read
        self._offset = page.entries[-1].end if page.entries else 0
        return page

    def messages(self, page: JournalPage) -> Iterator[JournalMessage]:
        """Yield the messages that are complete with this page, and leave out the unreadable ones.

        A long message comes in pieces on several pages.
        """
        for entry in page.entries:
            if not entry.offset:
                self._pieces.clear()  # if there are some, the journal has dropped the rest
            self._pieces.append(entry.data)
            if not entry.end:
                data = "".join(self._pieces)
                self._pieces.clear()
                if len(data) != sum(entry.lengths):
                    continue
                with suppress(UnreadableMessage):
                    yield JournalMessage(data, entry)


@dataclass(slots=True, kw_only=True)
class CellRun:
    """One execution of code, as the journal has it."""

    request_id: str
    session: str
    cell_id: str
    """The notebook's id of the cell; empty for other code."""
    code: str = ""
    execution_count: int | None = None
    outputs: list[dict[str, Any]] = field(default_factory=list)
    """The outputs in the form of nbformat."""
    is_done: bool = False
    is_lost: bool = False
    """True if the kernel's process has ended before the cell was done."""
    is_cut: bool = False
    """True if a part of the output is gone."""
    _displays: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def end_with_process(self) -> None:
        """Note that the kernel's process has ended. A cell that was not done is lost."""
        if not self.is_done:
            self.is_done = self.is_lost = True

    def add(self, message: JournalMessage) -> None:
        kind, content = message.header.kind, read_content(message.header.kind, message.content)
        display_id = read_display_id(message.content)
        self.is_cut = self.is_cut or message.is_cut
        if kind == "execute_input":
            self.code, self.execution_count = content["code"], content["execution_count"]
        elif kind == "status":
            if content["execution_state"]:
                self.is_done = content["execution_state"] == "idle"
        elif kind == "update_display_data":
            shown = self._displays.get(display_id)
            if shown is not None:
                shown |= content
        else:
            add_output(self.outputs, {"header": {"msg_type": kind}, "content": message.content})
            if display_id and self.outputs:
                self._displays[display_id] = self.outputs[-1]


async def read_runs(
    client: Client, kernel_id: str, *, session: str = "", since_s: float | None = None
) -> list[CellRun]:
    """Return the executions in a kernel's journal in order.

    `Client.journal` describes which messages `session` and `since_s` choose.

    Raises `RoostError` and `asyncio.TimeoutError`.
    """
    reader = JournalReader(client, kernel_id)
    runs: dict[str, CellRun] = {}
    process = ""
    page = JournalPage(last=1)
    while not page.is_last:
        page = await reader.read(session, since_s)
        for message in reader.messages(page):
            parent, own = message.parent, message.header.session
            if own and own != parent.session:  # some kernels repeat the session of the request
                if process and own != process:
                    for earlier in runs.values():
                        earlier.end_with_process()
                process = own
            if parent.kind != "execute_request" or not parent.msg_id:
                continue
            run = runs.get(parent.msg_id)
            if run is None:
                run = CellRun(request_id=parent.msg_id, session=parent.session, cell_id=parent.cell_id)
                runs[run.request_id] = run
            run.add(message)
    return list(runs.values())
