"""Who waits for room, in which order, and for what.

Requests for the same amounts under the same policy form a line, first come first served; only the first of a
line tries to be placed, when it gets there and on every change of the cluster. Lines do not wait for each
other: who waits for a GPU holds up nobody who wants a CPU. The first of each line try in the order in which
they came, so that what is freed goes to the one that waited longest among those it fits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .node_hold import Claim

_TELL_AFTER_S = 0.1
"""Changes of position are told together: one departure from a line of a hundred moves ninety-nine."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One place in the queue."""

    kernel_id: str
    line: Hashable
    joined_at: float
    waits_for: str = ""
    told: tuple[int, str] = (0, "")
    claim: Claim | None = None
    event: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class Queue:
    """The lines. `on_moved` is called with a kernel's id after its position, or what it waits for, has changed."""

    def __init__(self, *, on_moved: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._lines: dict[Hashable, list[Ticket]] = {}
        self._on_moved = on_moved
        self._clock = clock
        self._telling: asyncio.TimerHandle | None = None

    def join(self, kernel_id: str, line: Hashable) -> Ticket:
        """Take the last place in a line."""
        ticket = Ticket(kernel_id=kernel_id, line=line, joined_at=self._clock())
        tickets = self._lines.setdefault(line, [])
        tickets.append(ticket)
        if tickets[0] is ticket:
            ticket.event.set()
        else:
            self._tell_soon()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give a place up, served or not; the next in line tries at once. May be repeated."""
        tickets = self._lines.get(ticket.line, [])
        if ticket not in tickets:
            return
        tickets.remove(ticket)
        if tickets:
            tickets[0].waits_for = tickets[0].waits_for or ticket.waits_for  # until it has looked for itself
            tickets[0].event.set()
            self._tell_soon()
        else:
            del self._lines[ticket.line]
        if ticket.claim is not None:
            self.wake()  # what was kept for it is there for others

    async def turn(self, ticket: Ticket, deadline: float) -> None:
        """Wait until it makes sense to try (again); raises `asyncio.TimeoutError` at `deadline` on the clock."""
        if not ticket.event.is_set():
            await asyncio.wait_for(ticket.event.wait(), max(0.0, deadline - self._clock()))
        ticket.event.clear()

    def wake(self) -> None:
        """The cluster has changed: the first of each line try again, oldest first."""
        for ticket in self.heads():
            ticket.event.set()

    def heads(self) -> list[Ticket]:
        """The first of each line, oldest first."""
        return sorted((tickets[0] for tickets in self._lines.values()), key=lambda ticket: ticket.joined_at)

    def say(self, ticket: Ticket, waits_for: str) -> None:
        """Note what the first of a line waits for."""
        if ticket.waits_for != waits_for:
            ticket.waits_for = waits_for
            self._tell_soon()

    def place(self, ticket: Ticket) -> tuple[int, str]:
        """Position in its line (1 is next) and what it waits for."""
        tickets = self._lines.get(ticket.line, [])
        if ticket not in tickets:
            return 1, ticket.waits_for
        position = tickets.index(ticket) + 1
        return position, tickets[0].waits_for

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    def _tell_soon(self) -> None:
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TELL_AFTER_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        for tickets in list(self._lines.values()):
            for position, ticket in enumerate(list(tickets), start=1):
                now = (position, tickets[0].waits_for if tickets else "")
                if now != ticket.told:
                    ticket.told = now
                    self._on_moved(ticket.kernel_id)
