"""The queue: which starts wait for room, in which order, and for which reason.

Requests for the same amounts under the same policy form a line, first come first served. Only the head of a line is
placed: when it becomes the head, and on every change of the cluster. Lines do not wait for each other: a request for a
GPU does not delay a request for a CPU. The heads try in the order of their arrival, so that freed resources go to the
longest-waiting request that fits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roost.launchers.daemon.tasks import Clock, Timers

if TYPE_CHECKING:
    from .node_hold import NodeHold

_REPORT_AFTER_S = 0.1
"""How long changes of position are collected. One departure from a line of a hundred moves ninety-nine."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One place in the queue."""

    kernel_id: str
    line: Hashable
    joined_at: float
    waits_for: str = ""
    reported: tuple[int, str] = (0, "")
    hold: NodeHold | None = None
    event: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class Queue:
    """The lines. `on_moved` is called with a kernel's id after its position or its reason has changed.

    `clock` is monotonic, and `timers` is the clock of the reports (the event loop by default).
    """

    def __init__(
        self,
        *,
        on_moved: Callable[[str], None],
        clock: Callable[[], float],
        timers: Clock | None = None,
    ) -> None:
        self._lines: dict[Hashable, list[Ticket]] = {}
        self._on_moved = on_moved
        self._clock = clock
        self._timers = Timers(timers)

    def join(self, kernel_id: str, line: Hashable) -> Ticket:
        """Take the last place in a line."""
        ticket = Ticket(kernel_id=kernel_id, line=line, joined_at=self._clock())
        tickets = self._lines.setdefault(line, [])
        tickets.append(ticket)
        if tickets[0] is ticket:
            ticket.event.set()
        else:
            self._report_soon()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give a place up, served or not; the next in line tries at once. May be repeated."""
        tickets = self._lines.get(ticket.line, [])
        if ticket not in tickets:
            return
        tickets.remove(ticket)
        if tickets:
            tickets[0].waits_for = tickets[0].waits_for or ticket.waits_for  # until it has tried itself
            tickets[0].event.set()
            self._report_soon()
        else:
            del self._lines[ticket.line]
        if ticket.hold is not None:
            self.wake()  # others may have the node that was reserved for it

    async def turn(self, ticket: Ticket, deadline: float) -> None:
        """Wait until the ticket's request should be placed (again).

        Raises `asyncio.TimeoutError` at `deadline` on the clock.
        """
        if not ticket.event.is_set():
            await asyncio.wait_for(ticket.event.wait(), max(0.0, deadline - self._clock()))
        ticket.event.clear()

    def wake(self) -> None:
        """The cluster has changed: the heads of all lines try again, oldest first."""
        for ticket in self.heads():
            ticket.event.set()

    def heads(self) -> list[Ticket]:
        """Return the head of each line, oldest first."""
        return sorted((tickets[0] for tickets in self._lines.values()), key=lambda ticket: ticket.joined_at)

    def explain(self, ticket: Ticket, waits_for: str) -> None:
        """Note the reason why the head of a line waits."""
        if ticket.waits_for != waits_for:
            ticket.waits_for = waits_for
            self._report_soon()

    def place(self, ticket: Ticket) -> tuple[int, str]:
        """Return the position in its line (1 is next) and the reason why the line waits."""
        tickets = self._lines.get(ticket.line, [])
        if ticket not in tickets:
            return 1, ticket.waits_for
        position = tickets.index(ticket) + 1
        return position, tickets[0].waits_for

    def close(self) -> None:
        self._timers.close()

    def _report_soon(self) -> None:
        if "report" not in self._timers:
            self._timers.later(_REPORT_AFTER_S, self._report, key="report")

    def _report(self) -> None:
        for tickets in list(self._lines.values()):
            for position, ticket in enumerate(list(tickets), start=1):
                now = (position, tickets[0].waits_for if tickets else "")
                if now != ticket.reported:
                    ticket.reported = now
                    self._on_moved(ticket.kernel_id)
