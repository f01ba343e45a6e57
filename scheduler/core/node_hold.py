"""Reserve a node for the longest-waiting request, so that small requests cannot starve a large one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from roost.placement import Decision, Request, Snapshot

from .queue import Ticket

AMOUNTS = {"gpu": "gpus", "memory": "memory_bytes", "cpu": "cpus", "resources": "resources"}
"""The filters about amounts, and the field of a request that each looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHold:
    """A node where a request waits for room, and the amounts (fields of a request) that are short there."""

    node_id: str
    amounts: frozenset[str]


def find_hold(decision: Decision, snapshot: Snapshot) -> NodeHold | None:
    """Return the node that is likely to have room first for a refused request.

    It is the freest of the nodes that lack only amounts.
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
    best = max(
        sorted(nodes, key=lambda n: n.id), key=lambda n: (n.gpus_free, n.memory_free_bytes, n.cpus_free)
    )
    return NodeHold(node_id=best.id, amounts=frozenset(short[best.id]))


def held_for_elders(
    ticket: Ticket, request: Request, heads: Iterable[Ticket], *, now: float, after_s: float
) -> frozenset[str]:
    """Return the nodes reserved for requests that have waited longer than `ticket`, and at least `after_s`.

    Only requests for the same kind of amounts count. `heads` are the heads of the queue, oldest first.
    """
    held = set()
    for elder in heads:
        if elder is ticket:
            break
        hold = elder.hold
        has_waited = now - elder.joined_at >= after_s
        if hold is not None and has_waited and any(getattr(request, amount) for amount in hold.amounts):
            held.add(hold.node_id)
    return frozenset(held)
