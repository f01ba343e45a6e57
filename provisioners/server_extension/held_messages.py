"""The messages that the clients of a waiting kernel have sent. They belong to the kernel, not to a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_MESSAGES = 1_000
"""At most this many messages are held for one kernel."""
MOST_BYTES = 16 * 2**20
"""At most this many bytes of messages are held for one kernel."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldMessage:
    """A message to the kernel.

    `sender` is the connection that received it; `raw` is the message as received.
    """

    sender: Any
    raw: Any = field(repr=False)
    channel: str
    parts: tuple[bytes, ...] = field(repr=False)

    @property
    def header(self) -> dict[str, Any]:
        return dict(json.loads(self.parts[0]))

    @property
    def is_cell(self) -> bool:
        """True if the message asks the kernel to execute code."""
        return self.channel == "shell" and self.header.get("msg_type") == "execute_request"

    @property
    def is_of_notebook(self) -> bool:
        """True if the message executes a cell of a notebook, so that its sender can show outputs in the cell."""
        metadata: Mapping[str, Any] = json.loads(self.parts[2])
        return self.is_cell and "cellId" in metadata

    def parts_with_cell_id(self) -> tuple[bytes, ...]:
        """Return the parts with the cell's id in the header. The kernel copies the header to all its answers."""
        header = {**self.header, "cellId": json.loads(self.parts[2])["cellId"]}
        return (json.dumps(header).encode(), *self.parts[1:])

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.parts))


class HeldMessages:
    """The messages held for one kernel, in the order of their arrival.

    `on_change` is called soon after a change, once for several changes in a row.
    """

    def __init__(self) -> None:
        self._messages: list[HeldMessage] = []
        self._n_bytes = 0
        self.on_change: Callable[[], None] | None = None
        self._is_reported = True

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: HeldMessage) -> bool:
        """Hold `message` and return True, or return False if there is no more room."""
        if len(self._messages) >= MOST_MESSAGES or self._n_bytes + message.n_bytes > MOST_BYTES:
            return False
        self._messages.append(message)
        self._n_bytes += message.n_bytes
        self._report_soon()
        return True

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The headers of the held cells."""
        return [message.header for message in self._messages if message.is_cell]

    def take(self, wanted: Callable[[HeldMessage], bool] = lambda _: True) -> list[HeldMessage]:
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
