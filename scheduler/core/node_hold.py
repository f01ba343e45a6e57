"""Keeping a node free for who has waited long, so that a stream of small requests cannot starve a large one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from roost.placement import Decision, Request, Snapshot

from .queue import Ticket

AMOUNTS = {"gpu": "gpus", "memory": "memory_bytes", "cpu": "cpus", "resources": "resources"}
"""Filters that speak of amounts, and what of a request they look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`node_id` is where room is awaited, `amounts` (fields of a request) what is short there."""

    node_id: str
    amounts: frozenset[str]


def claim(decision: Decision, snapshot: Snapshot) -> Claim | None:
    """The node that would come free first for a refused request: the freest of those that lack only amounts."""
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
    return Claim(node_id=best.id, amounts=frozenset(short[best.id]))


def kept_from(
    ticket: Ticket, request: Request, heads: Iterable[Ticket], *, now: float, after_s: float
) -> frozenset[str]:
    """Nodes that `ticket` may not have, since an elder has waited `after_s` there for what it asks for too."""
    kept = set()
    for elder in heads:
        if elder is ticket:
            break
        held = elder.claim
        has_waited = now - elder.joined_at >= after_s
        if held is not None and has_waited and any(getattr(request, amount) for amount in held.amounts):
            kept.add(held.node_id)
    return frozenset(kept)
