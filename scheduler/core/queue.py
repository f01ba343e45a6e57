"""The queue: which starts wait for room, in which order, and for which reason.

Requests for the same amounts under the same policy form a line, first come first served. The heads of all lines try
in the order of their arrival, and on every change of the cluster. A node is reserved for a request that waits long
(`NodeHold`), so that small requests cannot starve a large one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from roost.launchers.daemon.tasks import Timers
from roost.placement import Decision, Request, Snapshot

_REPORT_AFTER_S = 0.1
"""How long changes of position are collected. One departure from a line of a hundred moves ninety-nine."""
AMOUNTS = {"gpu": "gpus", "memory": "memory_bytes", "cpu": "cpus", "resources": "resources"}
"""The filters about amounts, and the field of a request that each looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHold:
    """A node where a request waits for room, and the amounts (fields of a request) that are short there."""

    node_id: str
    amounts: frozenset[str]


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    kernel_id: str
    line: Hashable
    joined_at: float
    waits_for: str = ""
    reported: tuple[int, str] = (0, "")
    hold: NodeHold | None = None
    event: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class Queue:
    """The lines. `on_moved` is called with a kernel's id after its position or its reason has changed."""

    def __init__(
        self,
        *,
        on_moved: Callable[[str], None],
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines: dict[Hashable, list[Ticket]] = {}
        self._on_moved = on_moved
        self._clock = clock
        self._timers = timers

    def join(self, kernel_id: str, line: Hashable) -> Ticket:
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
        """Wait until the ticket's request should be placed (again); raise `asyncio.TimeoutError` at `deadline`."""
        if not ticket.event.is_set():
            await asyncio.wait_for(ticket.event.wait(), max(0.0, deadline - self._clock()))
        ticket.event.clear()

    def wake(self) -> None:
        """Wake the head of each line, oldest first, because the cluster has changed."""
        for ticket in self.heads():
            ticket.event.set()

    def heads(self) -> list[Ticket]:
        """Return the head of each line, oldest first."""
        return sorted((tickets[0] for tickets in self._lines.values()), key=lambda ticket: ticket.joined_at)

    def retry(self, ticket: Ticket, delay_s: float) -> None:
        self._timers.later(delay_s, ticket.event.set)

    def explain(self, ticket: Ticket, waits_for: str) -> None:
        if ticket.waits_for != waits_for:
            ticket.waits_for = waits_for
            self._report_soon()

    def place(self, ticket: Ticket) -> tuple[int, str]:
        """Return the position in its line (1 is next) and the reason why the line waits."""
        tickets = self._lines.get(ticket.line, [])
        if ticket not in tickets:
            return 1, ticket.waits_for
        return tickets.index(ticket) + 1, tickets[0].waits_for

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


def find_hold(decision: Decision, snapshot: Snapshot) -> NodeHold | None:
    """Return the node that is likely to have room first: the freest of the nodes that lack only amounts."""
    short: dict[str, set[str]] = {}
    unfit = set()
    for refusal in decision.refusals:
        if refusal.when == "now" and refusal.filter in AMOUNTS:
            short.setdefault(refusal.node_id, set()).add(AMOUNTS[refusal.filter])
        elif refusal.filter != "avoid":
            unfit.add(refusal.node_id)
    nodes = [snapshot.node(node_id) for node_id in short.keys() - unfit]
    if not nodes:
        return None
    nodes.sort(key=lambda node: node.id)
    best = max(nodes, key=lambda node: (node.gpus_free, node.memory_free_bytes, node.cpus_free))
    return NodeHold(node_id=best.id, amounts=frozenset(short[best.id]))


def held_for_elders(
    ticket: Ticket, request: Request, heads: Iterable[Ticket], *, now: float, after_s: float
) -> frozenset[str]:
    """Return the nodes reserved for requests that have waited longer than `ticket`, and at least `after_s`.

    Only requests for the same kind of amounts count. `heads` are the queue's, oldest first.
    """
    held = set()
    for elder in heads:
        if elder is ticket:
            break
        hold = elder.hold if now - elder.joined_at >= after_s else None
        if hold is not None and any(getattr(request, amount) for amount in hold.amounts):
            held.add(hold.node_id)
    return frozenset(held)
