"""The one line that the first held cell shows while its kernel waits."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

Send = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]
"""Sends a message to the kernel's clients: its type, its content, and the header of the request that it belongs to."""


class WaitingLine:
    """A line in a cell's output. It changes in place, and is cleared before the cell's own output."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._text = ""
        self._header: Mapping[str, Any] = {}
        self._display_id = ""
        self._is_shown = False

    def begin(self, header: Mapping[str, Any]) -> None:
        """Show the line in the cell whose request has `header`, once there is a text."""
        self._header, self._display_id, self._is_shown = header, uuid.uuid4().hex, False
        if self._text:
            self._show()

    def change(self, text: str) -> None:
        if text != self._text:
            self._text = text
            if self._header:
                self._show()

    def clear(self) -> None:
        """Remove the line from its cell. May be repeated."""
        if self._is_shown:
            self._send("clear_output", {"wait": False}, self._header)
        self._header, self._is_shown = {}, False

    def _show(self) -> None:
        kind = "update_display_data" if self._is_shown else "display_data"
        self._is_shown = True
        transient = {"display_id": self._display_id}
        self._send(
            kind, {"data": {"text/plain": self._text}, "metadata": {}, "transient": transient}, self._header
        )
