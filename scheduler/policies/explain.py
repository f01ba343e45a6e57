"""The additions of `roost explain` to a decision: warnings about metrics, and the holders of scarce resources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from roost.placement import Decision, Node, Pipeline, Request, Snapshot
from roost.placement.model.format import format_age
from roost.placement.rules.refusals import AMOUNTS
from roost.scheduler.backends.base import Lease

STALE_AFTER_S = 30.0
"""Metrics older than this cause a warning."""
_SHORT_S = 120.0
_EXAMINED_NODES = 50
"""At most this many nodes, closest to fitting first, are searched for kernels whose end would make room."""


def build_explanation(decision: Decision, snapshot: Snapshot) -> dict[str, Any]:
    """Return the decision as JSON values, with the number of `nodes`, `warnings`, and `soonest`, which is None yet."""
    warnings = find_metrics_warnings(decision, snapshot)
    return {**decision.to_dict(), "nodes": len(snapshot), "warnings": warnings, "soonest": None}


def find_metrics_warnings(decision: Decision, snapshot: Snapshot) -> list[str]:
    """Return warnings about nodes with missing or old metrics, and about chosen devices of unknown use."""
    missing = int(np.isnan(snapshot.columns.metrics_age_s).sum())
    stale = int((~snapshot.has_fresh_metrics(STALE_AFTER_S)).sum()) - missing
    found = [f"{_nodes(missing, len(snapshot))} no metrics"] if missing else []
    found += [f"{_nodes(stale, len(snapshot))} metrics older than {STALE_AFTER_S:g} s"] if stale else []
    warnings = [f"{which}: real use is unknown" for which in found]
    if decision.placement is not None:
        node, chosen = snapshot.node(decision.placement.node_id), decision.placement.device_ids
        unknown = [device.id for device in node.devices if device.id in chosen and device.use is None]
        if unknown and node.metrics_age_s is not None:
            warnings.append(f"the real use of GPU {', '.join(unknown)} on {node.id} is unknown")
    return warnings


def describe_left(nodes: Mapping[str, float]) -> str:
    """Return a clause about nodes that have left the cluster lately, and for how long; empty without one.

    Such a node may come back, and could then hold a request that no node could ever hold. The clause is part of the
    reason of a wait, so it changes once a minute at most.
    """
    ages = [
        f"{name} {format_age(left_s) if left_s >= _SHORT_S else 'less than 2 min'} ago"
        for name, left_s in sorted(nodes.items())
    ]
    return f"lately left the cluster: {', '.join(ages)}" if ages else ""


def find_soonest(
    decision: Decision, snapshot: Snapshot, leases: Iterable[Lease], since: Mapping[str, float]
) -> dict[str, Any] | None:
    """Return the node where the fewest of roost's kernels must end to make room, and these kernels, or None.

    If this is true of several nodes, return the node where these kernels hold least. `since` has the start times of
    kernels by id.
    """
    unfit = {
        refusal.node_id
        for refusal in decision.refusals
        if refusal.when == "never" or refusal.filter not in AMOUNTS
    }
    by_node: dict[str, list[Lease]] = {}
    for lease in leases:
        if lease.node_id in snapshot and lease.node_id not in unfit:
            by_node.setdefault(lease.node_id, []).append(lease)
    nearest = {example.node_id for group in decision.refused for example in group.examples}
    examined = sorted(by_node, key=lambda node_id: (node_id not in nearest, len(by_node[node_id]), node_id))
    found = []
    for node_id in examined[:_EXAMINED_NODES]:
        has_room = partial(_has_room, decision.request, snapshot.node(node_id))
        ended = _choose_leases(by_node[node_id], has_room)
        if ended:
            found.append((len(ended), sum(map(_weight, ended)), node_id, ended))
    if not found:
        return None
    _, _, node_id, ended = min(found, key=lambda one: one[:3])
    kernels = [
        {
            "id": lease.kernel_id,
            "user": lease.owner.user,
            "application": lease.owner.application,
            "cpus": lease.request.cpus,
            "memory_bytes": lease.request.memory_bytes,
            "gpus": lease.request.gpus,
            "resources": dict(lease.request.resources),
            "device_ids": list(lease.device_ids),
            "since": since.get(lease.kernel_id),
        }
        for lease in ended
    ]
    return {"node_id": node_id, "kernels": kernels}


def _has_room(request: Request, node: Node, ended: Iterable[Lease]) -> bool:
    """True if the request fits the node after these leases are given back."""
    for lease in ended:
        node = node.without_kernel(lease.request, lease.device_ids)
    return Pipeline(name="fits", scorers=()).place(request, Snapshot.of([node])).placement is not None


def _choose_leases(leases: Iterable[Lease], has_room: Callable[[Sequence[Lease]], bool]) -> list[Lease]:
    """Return few leases whose end makes room: if possible, one small lease. Return none if all are not enough."""
    ended = sorted(leases, key=lambda lease: (_weight(lease), lease.kernel_id))
    for lease in ended:
        if has_room([lease]):
            return [lease]
    if not has_room(ended):
        return []
    for lease in list(ended):
        rest = [other for other in ended if other is not lease]
        if has_room(rest):
            ended = rest
    return ended


def _weight(lease: Lease) -> float:
    """Return the size of a lease: GPUs count most, then memory, then CPUs."""
    return lease.request.gpus * 1e6 + lease.request.memory_bytes / 2**30 + lease.request.cpus * 1e-6


def _nodes(count: int, total: int) -> str:
    return f"{count} of {total} nodes {'has' if count == 1 else 'have'}"
