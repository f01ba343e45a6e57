"""The resources that others than roost hold while a request waits: a cluster's own programs, or other users."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

from roost.placement import Decision, Node, Request, Snapshot
from roost.placement.model.format import format_amount, format_bytes, format_count
from roost.scheduler.backends.base import Backend, Lease


class OtherHolders(TypedDict):
    """One resource that others hold, on the nodes that could take the request if they were empty."""

    resource: Literal["gpus", "memory", "cpus"]
    amount: float
    of: float
    """All that these nodes have."""
    text: str
    """All of this as a clause."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A resource, as nodes and requests have it. The filter `filter` refuses nodes that lack it."""

    filter: str
    resource: Literal["gpus", "memory", "cpus"]
    exact: float
    """The difference between two sums that counts as none."""
    total: Callable[[Node], float]
    promised: Callable[[Node], float]
    asked: Callable[[Request], float]
    describe: Callable[[float, float], str]


def _describe_count(word: str) -> Callable[[float, float], str]:
    def describe(held: float, total: float) -> str:
        return f"{format_amount(held)} of {format_count(total, word)} {'is' if held <= 1 else 'are'}"

    return describe


_KINDS = (
    _Kind(
        filter="gpu",
        resource="gpus",
        exact=1e-3,
        total=lambda node: node.gpus,
        promised=lambda node: node.gpus_promised,
        asked=lambda request: request.gpus,
        describe=_describe_count("GPU"),
    ),
    _Kind(
        filter="memory",
        resource="memory",
        exact=1 << 20,
        total=lambda node: node.memory_bytes,
        promised=lambda node: node.memory_promised_bytes,
        asked=lambda request: request.memory_bytes,
        describe=lambda held, total: f"{format_bytes(held)} of {format_bytes(total)} of memory is",
    ),
    _Kind(
        filter="cpu",
        resource="cpus",
        exact=1e-3,
        total=lambda node: node.cpus,
        promised=lambda node: node.cpus_promised,
        asked=lambda request: request.cpus,
        describe=_describe_count("CPU"),
    ),
)
"""In the order in which the text names one of them."""


def find_others(
    decision: Decision, snapshot: Snapshot, leases: Iterable[Lease], backend: Backend
) -> OtherHolders | None:
    """Return the other holders of a resource that a request lacks, besides the kernels in `leases`; else None.

    None too if the backend does not tell what else its cluster runs.
    """
    if not backend.other_holders:
        return None
    never = {refusal.node_id for refusal in decision.refusals if refusal.when == "never"}
    leases = list(leases)
    for kind in _KINDS:
        full = {refusal.node_id for refusal in decision.refusals if refusal.filter == kind.filter} - never
        held = {node_id: snapshot.node(node_id) for node_id in full}
        by_others = _sum_by_others(kind, held, leases)
        if by_others:
            total = sum(kind.total(node) for node in held.values())
            amount = round(sum(by_others.values()), 3)
            text = f"{kind.describe(amount, total)} held by {backend.other_holders}"
            return {"resource": kind.resource, "amount": amount, "of": total, "text": text}
    return None


def _sum_by_others(kind: _Kind, nodes: dict[str, Node], leases: Iterable[Lease]) -> dict[str, float]:
    """Return the amounts that others hold, by node."""
    amounts = {node_id: kind.promised(node) for node_id, node in nodes.items()}
    for lease in leases:
        if lease.node_id in amounts:
            amounts[lease.node_id] -= kind.asked(lease.request)
    return {node_id: amount for node_id, amount in amounts.items() if amount > kind.exact}
