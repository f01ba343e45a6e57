"""The reasons why nodes are refused, for each node and counted by the main reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from roost.placement.model.node import UNREACHABLE

When = Literal["now", "never"]

BY_OPERATOR = "is draining"
"""The reason why a node is refused if it is draining and reports no cause: then an operator drains it."""

AMOUNTS = {"gpu": "gpus", "memory": "memory_bytes", "cpu": "cpus", "resources": "resources"}
"""The filters about amounts, and the field of a request that each looks at."""

SUMMARIES: dict[tuple[str, str], tuple[str, str]] = {  # (filter, when) → predicate for one node, for several
    ("gpu", "now"): ("has too few GPUs free now", "have too few GPUs free now"),
    ("gpu", "never"): ("has too few such GPUs at all", "have too few such GPUs at all"),
    ("memory", "now"): ("has too little memory free now", "have too little memory free now"),
    ("memory", "never"): ("has too little memory at all", "have too little memory at all"),
    ("cpu", "now"): ("has too few CPUs free now", "have too few CPUs free now"),
    ("cpu", "never"): ("has too few CPUs at all", "have too few CPUs at all"),
    ("resources", "now"): ("has too little of a resource free now", "have too little of a resource free now"),
    ("resources", "never"): ("has too little of a resource at all", "have too little of a resource at all"),
    ("labels", "never"): ("lacks a label asked for", "lack a label asked for"),
    ("taints", "never"): ("is kept for others (a taint)", "are kept for others (taints)"),
    ("draining", "now"): ("is draining", "are draining"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The reason why one filter refuses one node.

    ``when`` is ``now`` if the empty node would fit the request, else ``never``. ``reason`` is a predicate with
    figures. The node is its subject.

    >>> refusal = Refusal(node_id="a", filter="gpu", reason="needs 1 GPU, 0.25 free", when="now")
    >>> f"{refusal.node_id} {refusal.reason}"
    'a needs 1 GPU, 0.25 free'
    """

    node_id: str
    filter: str
    reason: str
    when: When


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalGroup:
    """The nodes that are refused for the same main reason.

    >>> RefusalGroup(filter="gpu", when="now", count=2).describe(2)
    'have too few GPUs free now'
    """

    filter: str
    when: When
    count: int
    """The number of these nodes."""
    alone: int = 0
    """How many of these nodes have no other reason."""
    examples: tuple[Refusal, ...] = ()
    """A few of the refusals. The node nearest to fitting comes first."""

    def describe(self, count: int) -> str:
        """Return the predicate for ``count`` of these nodes."""
        if self.filter == "avoid" and self.examples:
            reason = self.examples[0].reason
            return reason if count == 1 else f"are avoided (each {reason})"
        if self.examples and find_cause(self.filter, self.examples[0].reason) == UNREACHABLE:
            return "cannot be reached now"
        by_policy = f"is refused by {self.filter}", f"are refused by {self.filter}"
        one, many = SUMMARIES.get((self.filter, self.when), by_policy)
        return one if count == 1 else many


def find_cause(name: str, reason: str) -> str:
    """Return what tells the groups of the filter `name` apart: the reason to avoid a node, or unreachable."""
    if name == "draining":
        return UNREACHABLE if reason.startswith(UNREACHABLE) else ""
    return reason if name == "avoid" else ""


def group_refusals(refusals: Iterable[Refusal]) -> tuple[RefusalGroup, ...]:
    """Return the refused nodes in groups by their main reason, the largest group first.

    The main reason of a node is its first *never* refusal. If it has none, it is the first *now* refusal.
    """
    per_node: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        per_node.setdefault(refusal.node_id, []).append(refusal)
    groups: dict[tuple[str, When, str], list[list[Refusal]]] = {}
    for each in per_node.values():
        each.sort(key=lambda refusal: refusal.when == "now")
        main = each[0]
        groups.setdefault((main.filter, main.when, find_cause(main.filter, main.reason)), []).append(each)
    counted = [
        RefusalGroup(
            filter=name,
            when=when,
            count=len(nodes),
            alone=sum(len(each) == 1 for each in nodes),
            examples=tuple(each[0] for each in sorted(nodes, key=len)[:3]),
        )
        for (name, when, _), nodes in groups.items()
    ]
    return tuple(sorted(counted, key=lambda group: -group.count))
