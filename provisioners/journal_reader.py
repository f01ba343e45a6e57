"""Reads the journal of a kernel: its messages, and the outputs of its cells."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from roost.scheduler.client.client import Client
from roost.scheduler.messages import JournalEntry, JournalPage

from .execution import add_output

_ANSWER_S = 10.0
_JSON_PARTS = 4


class JournalMessage:
    """A message that a kernel has published, as its journal has it.

    `is_cut` is true if output of the same request is missing, because the journal has dropped it.
    """

    def __init__(self, data: str, entry: JournalEntry) -> None:
        ends = list(itertools.accumulate(entry.lengths))
        texts = [data[end - length : end] for end, length in zip(ends, entry.lengths, strict=True)]
        self._content = texts[3]
        self.parts = [text.encode() for text in texts[:_JSON_PARTS]]
        self.parts += [base64.b64decode(text) for text in texts[_JSON_PARTS:]]
        self.header: dict[str, Any] = json.loads(texts[0])
        self.parent_header: dict[str, Any] = json.loads(texts[1]) or {}  # xeus sends null
        self.is_cut = entry.is_cut

    @cached_property
    def content(self) -> dict[str, Any]:
        return dict(json.loads(self._content) or {})


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
        """Yield the messages that are complete with this page.

        A long message comes in pieces on several pages.
        """
        for entry in page.entries:
            if not entry.offset:
                self._pieces.clear()  # if there are some, the journal has dropped the rest
            self._pieces.append(entry.data)
            if not entry.end:
                data = "".join(self._pieces)
                self._pieces.clear()
                if len(data) == sum(entry.lengths):
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
    is_cut: bool = False
    """True if a part of the output is gone."""
    _displays: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def add(self, message: JournalMessage) -> None:
        kind, content = message.header["msg_type"], message.content
        self.is_cut = self.is_cut or message.is_cut
        if kind == "execute_input":
            self.code, self.execution_count = content.get("code") or "", content.get("execution_count")
        elif kind == "status":
            self.is_done = content.get("execution_state") == "idle"
        elif kind == "update_display_data":
            shown = self._displays.get(_read_display_id(content))
            if shown is not None:
                shown |= {name: content.get(name) or {} for name in ("data", "metadata")}
        else:
            add_output(self.outputs, {"header": message.header, "content": content})
            name = _read_display_id(content)
            if name and self.outputs:
                self._displays[name] = self.outputs[-1]


def _read_display_id(content: Mapping[str, Any]) -> str:
    """Return the name of an output that later messages update; empty if it has none."""
    return str((content.get("transient") or {}).get("display_id") or "")


async def read_runs(
    client: Client, kernel_id: str, *, session: str = "", since_s: float | None = None
) -> list[CellRun]:
    """Return the executions in a kernel's journal in order.

    `Client.journal` describes which messages `session` and `since_s` choose.

    Raises `RoostError` and `asyncio.TimeoutError`.
    """
    reader = JournalReader(client, kernel_id)
    runs: dict[str, CellRun] = {}
    page = JournalPage(last=1)
    while not page.is_last:
        page = await reader.read(session, since_s)
        for message in reader.messages(page):
            parent = message.parent_header
            if parent.get("msg_type") != "execute_request":
                continue
            run = runs.get(parent["msg_id"])
            if run is None:
                run = CellRun(
                    request_id=parent["msg_id"],
                    session=parent.get("session", ""),
                    cell_id=parent.get("cellId", ""),
                )
                runs[run.request_id] = run
            run.add(message)
    return list(runs.values())
