"""The messages that the clients of a waiting kernel have sent. They belong to the kernel, not to a connection."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

from roost.scheduler.messages import MOST_ID_CHARACTERS

from .client_message import ClientMessage

MOST_MESSAGES = 1_000
"""At most this many messages are held for one kernel."""
MOST_BYTES = 16 * 2**20
"""At most this many bytes of messages are held for one kernel."""
MOST_BYTES_IN_ALL = 64 * 2**20
"""At most this many bytes of messages are held in a server."""
FULL = "Too many messages wait for this kernel: run the cell again once the kernel has started."


_HEADER = ("msg_id", "msg_type", "session", "username", "date", "version", "cellId")


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MOST_ID_CHARACTERS


class HeldMessages:
    """The messages held for one kernel, in the order of their arrival.

    `on_change` is called soon after a change, once for several changes in a row.
    """

    def __init__(self) -> None:
        self._messages: list[ClientMessage] = []
        self._n_bytes = 0
        _all.add(self)
        self.on_change: Callable[[], None] | None = None
        self._is_reported = True

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: ClientMessage) -> bool:
        """Hold `message` and return True, or return False if there is no more room."""
        n_bytes = message.n_bytes
        if len(self._messages) >= MOST_MESSAGES or self._n_bytes + n_bytes > MOST_BYTES:
            return False
        if sum(each._n_bytes for each in _all) + n_bytes > MOST_BYTES_IN_ALL:
            return False
        self._messages.append(message)
        self._n_bytes += n_bytes
        self._report_soon()
        return True

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The headers of the held cells, with the fields that a client needs to find its cell."""
        return [
            {name: value for name, value in message.header.items() if name in _HEADER and _is_short(value)}
            for message in self._messages
            if message.is_cell
        ]

    def take(self, wanted: Callable[[ClientMessage], bool] = lambda _: True) -> list[ClientMessage]:
        """Remove the messages that are `wanted`, and return them in order."""
        taken = [message for message in self._messages if wanted(message)]
        self._messages = [message for message in self._messages if message not in taken]
        self._n_bytes = sum(message.n_bytes for message in self._messages)
        if taken:
            self._report_soon()
        return taken

    def _report_soon(self) -> None:
        if self._is_reported and self.on_change is not None:
            self._is_reported = False
            asyncio.get_running_loop().call_soon(self._report)

    def _report(self) -> None:
        self._is_reported = True
        if self.on_change is not None:
            self.on_change()


_all: weakref.WeakSet[HeldMessages] = weakref.WeakSet()
