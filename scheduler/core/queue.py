"""The queue: which starts wait for room, in which order, and for which reason.

Requests that are equal apart from interpreter, owner and preferred labels form a line, first come first served. Under
a policy that roost does not ship, each owner has lines of its own. The first start of a line is its head. The heads of
all lines are tried in the order of their arrival, and again on every change of the cluster. A node is reserved for a
request that has waited long (`NodeHold`), so that small requests cannot starve a large one.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from roost.launchers.daemon.tasks import Timers
from roost.placement import Decision, Request, Snapshot
from roost.placement.rules.refusals import AMOUNTS

_REPORT_AFTER_S = 0.1
"""How long changes of position are collected. One departure from a line of a hundred moves ninety-nine."""
_NEAR = 20
"""Behind this position, only a change by a tenth or more is reported: one departure moves a whole line."""
_WOKEN_AT_ONCE = 10
_NEXT_WOKEN_S = 0.01
"""Pause between two groups of heads that are woken. Other calls are answered in it. Each head takes a millisecond."""
_REPORTED_AT_ONCE = 100
_NEXT_REPORT_S = 0.02
_MOST_HOLDS = 100
"""At most this many of the oldest requests have a node reserved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHold:
    """A node that is kept free for a waiting request. `amounts` names the request's fields that are short there."""

    node_id: str
    amounts: frozenset[str]


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A place in a line. `position` is current only after `_Line.number`."""

    kernel_id: str
    line: Hashable
    joined_at: float
    waits_for: str = ""
    position: int = 0
    reported: tuple[int, str] = (0, "")
    hold: NodeHold | None = None
    event: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class _Line:
    """The tickets of one line, first come first. No operation looks at all of them, except the numbering."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[Ticket, None] = OrderedDict()
        self._is_numbered = True

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._tickets

    @property
    def head(self) -> Ticket:
        return next(iter(self._tickets))

    def join(self, ticket: Ticket) -> None:
        """Add a ticket: as the last one, unless it joined an earlier service's line before others did."""
        last = next(reversed(self._tickets), None)
        self._tickets[ticket] = None
        ticket.position = len(self._tickets)
        if last is not None and ticket.joined_at < last.joined_at:
            self._tickets = OrderedDict.fromkeys(sorted(self._tickets, key=lambda each: each.joined_at))
            self._is_numbered = False

    def leave(self, ticket: Ticket) -> None:
        del self._tickets[ticket]
        self._is_numbered = False

    def number(self) -> Iterable[Ticket]:
        """Return the tickets with their positions (1 is next)."""
        if not self._is_numbered:
            for position, ticket in enumerate(self._tickets, start=1):
                ticket.position = position
            self._is_numbered = True
        return self._tickets


class Queue:
    """The queue: all lines of waiting starts.

    `on_moved` is called with a kernel's id after its position or reason has changed (see `_NEAR`).
    """

    def __init__(
        self,
        *,
        on_moved: Callable[[str], None],
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines: dict[Hashable, _Line] = {}
        self._unreported: dict[Hashable, None] = {}  # the lines that may have changes to report
        self._heads: list[Ticket] | None = []  # oldest first; None if they have to be sorted again
        self._sleeping: list[Ticket] = []  # the heads that are woken soon
        self._wakes_again = False
        self._on_moved = on_moved
        self._clock = clock
        self._timers = timers

    def join(self, kernel_id: str, line: Hashable, waited_s: float = 0.0) -> Ticket:
        """Add a start to its line, where it has waited for `waited_s` with an earlier service."""
        ticket = Ticket(kernel_id=kernel_id, line=line, joined_at=self._clock() - waited_s)
        tickets = self._lines.setdefault(line, _Line())
        tickets.join(ticket)
        if tickets.head is ticket:
            if self._heads is not None and not waited_s:
                self._heads.append(ticket)
            else:
                self._heads = None
            ticket.event.set()
        else:
            self._report_soon(line)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Remove the ticket from its line. The next ticket in the line tries at once. May be repeated."""
        tickets = self._lines.get(ticket.line)
        if tickets is None or ticket not in tickets:
            return
        was_head = tickets.head is ticket
        tickets.leave(ticket)
        if was_head:
            self._heads = None
        if not tickets:
            del self._lines[ticket.line]
        else:
            if was_head:
                head = tickets.head
                head.waits_for = head.waits_for or ticket.waits_for  # until it has tried itself
                head.event.set()
            self._report_soon(ticket.line)
        if ticket.hold is not None:
            self.wake()  # others may have the node that was reserved for it

    async def turn(self, ticket: Ticket, deadline: float) -> None:
        """Wait until the ticket's request should be placed (again); raise `asyncio.TimeoutError` at `deadline`."""
        if not ticket.event.is_set():
            await asyncio.wait_for(ticket.event.wait(), max(0.0, deadline - self._clock()))
        ticket.event.clear()

    def wake(self) -> None:
        """Wake the heads of the lines, oldest first, because the cluster has changed."""
        if self._sleeping:
            self._wakes_again = True
        else:
            self._sleeping = self.heads()
            self._wake_some()

    def _wake_some(self) -> None:
        """Wake some heads. The others follow later, so that calls are answered meanwhile."""
        for ticket in self._sleeping[:_WOKEN_AT_ONCE]:
            ticket.event.set()
        self._sleeping = self._sleeping[_WOKEN_AT_ONCE:]
        if not self._sleeping and self._wakes_again:
            self._wakes_again, self._sleeping = False, self.heads()
        if self._sleeping:
            self._timers.later(_NEXT_WOKEN_S, self._wake_some)

    def heads(self) -> list[Ticket]:
        """Return the head of each line, oldest first."""
        if self._heads is None:
            heads = (tickets.head for tickets in self._lines.values())
            self._heads = sorted(heads, key=lambda ticket: ticket.joined_at)
        return self._heads

    def retry(self, ticket: Ticket, delay_s: float) -> None:
        self._timers.later(delay_s, ticket.event.set)

    def explain(self, ticket: Ticket, waits_for: str) -> None:
        if ticket.waits_for != waits_for:
            ticket.waits_for = waits_for
            self._report_soon(ticket.line)

    def place(self, ticket: Ticket) -> tuple[int, str]:
        """Return the ticket's position in its line (1 is next), and the reason why the line waits."""
        tickets = self._lines.get(ticket.line)
        if tickets is None or ticket not in tickets:
            return 1, ticket.waits_for
        tickets.number()
        return ticket.position, tickets.head.waits_for

    def _report_soon(self, line: Hashable) -> None:
        self._unreported[line] = None
        if "report" not in self._timers:
            self._timers.later(_REPORT_AFTER_S, self._report, key="report")

    def _report(self) -> None:
        """Report the tickets that have moved: some now, the others soon."""
        moved = list(itertools.islice(self._find_moved(), _REPORTED_AT_ONCE))
        if len(moved) == _REPORTED_AT_ONCE:
            self._timers.later(_NEXT_REPORT_S, self._report, key="report")
        for kernel_id in moved:
            self._on_moved(kernel_id)

    def _find_moved(self) -> Iterator[str]:
        """Yield the ids of kernels whose position or reason must be reported, and note the report."""
        while self._unreported:
            line = next(iter(self._unreported))
            tickets = self._lines.get(line) or _Line()  # all of a line may have left
            waits_for = tickets.head.waits_for if tickets else ""
            for ticket in tickets.number():
                position, reported = ticket.position, ticket.reported[0]
                now = (position, waits_for)
                is_far = min(position, reported) > _NEAR
                if now != ticket.reported and (not is_far or abs(position - reported) * 10 >= reported):
                    ticket.reported = now
                    yield ticket.kernel_id
            del self._unreported[line]


def find_hold(decision: Decision, snapshot: Snapshot) -> NodeHold | None:
    """Return a hold on the node with most free resources. Only nodes that lack nothing but amounts count.

    Return None if there is no such node.
    """
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
    line: Hashable, request: Request, heads: Iterable[Ticket], *, now: float, after_s: float
) -> dict[str, str]:
    """Return the nodes reserved for kernels that have waited longer than the head of `line`, and at least `after_s`.

    Each comes with the id of its kernel. For a line that nobody waits in, all others count. A hold counts only if
    `request` asks for an amount that is short there. `heads` come from `Queue.heads`.
    """
    held: dict[str, str] = {}
    for elder in itertools.islice(heads, _MOST_HOLDS):
        if elder.line == line:
            break
        hold = elder.hold if now - elder.joined_at >= after_s else None
        if hold is not None and any(getattr(request, amount) for amount in hold.amounts):
            held.setdefault(hold.node_id, elder.kernel_id)
    return held
