"""Why nodes are refused, node by node and counted by their main reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

When = Literal["now", "never"]

BY_OPERATOR = "is draining"
"""The reason for a node that an operator drains and that gives no reason of its own."""

SUMMARIES: dict[tuple[str, str], tuple[str, str]] = {  # (filter, when) → said of one node, of several
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


def summarize(name: str, when: str, count: int) -> str:
    """What is said of `count` nodes that the filter of that name refuses."""
    one, many = SUMMARIES.get((name, when), (f"is refused by {name}", f"are refused by {name}"))
    return one if count == 1 else many


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why one filter refuses one node. ``now``: the empty node would hold it; ``never``: not even that.

    ``reason`` is a sentence's fragment with figures, said of the node: ``needs 1 GPU, 0.25 free``.
    """

    node_id: str
    filter: str
    reason: str
    when: When


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalGroup:
    """How many nodes are refused for one main reason. ``alone``: for how many of them it is the only one.

    ``examples`` are a few of them, those nearest to fitting first.
    """

    filter: str
    when: When
    count: int
    alone: int = 0
    examples: tuple[Refusal, ...] = ()

    def describe(self, count: int) -> str:
        """The predicate, of so many of these nodes: ``have too little memory free now``. Nodes to avoid come with
        their reason."""
        if self.filter == "avoid" and self.examples:
            return self.examples[0].reason
        return summarize(self.filter, self.when, count)


def group_refusals(refusals: Iterable[Refusal]) -> tuple[RefusalGroup, ...]:
    """The refused nodes counted by their main reason: a node's first *never*, else its first *now*."""
    per_node: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        per_node.setdefault(refusal.node_id, []).append(refusal)
    groups: dict[tuple[str, When, str], list[list[Refusal]]] = {}
    for each in per_node.values():
        each.sort(key=lambda refusal: refusal.when == "now")
        main = each[0]
        said = main.reason if main.filter == "avoid" else ""
        groups.setdefault((main.filter, main.when, said), []).append(each)
    found = [
        RefusalGroup(
            filter=name,
            when=when,
            count=len(nodes),
            alone=sum(len(each) == 1 for each in nodes),
            examples=tuple(each[0] for each in sorted(nodes, key=len)[:3]),
        )
        for (name, when, _), nodes in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: -group.count))
