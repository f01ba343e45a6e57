"""What `roost explain` adds to a decision: what it rests on, and which kernels hold what is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from roost.placement import Decision, Pipeline, Snapshot
from roost.scheduler.backends.base import Lease
from roost.scheduler.core.node_hold import AMOUNTS

STALE_AFTER_S = 30.0
"""Metrics that are older are warned of."""
_LOOKED_AT = 50
"""On so many nodes, the nearest first, kernels are looked for whose end would make room."""


def build_explanation(decision: Decision, snapshot: Snapshot) -> dict[str, Any]:
    """The decision as JSON values, with `nodes` (how many there are), `warnings` (sentences) and `soonest` (none)."""
    warnings = metrics_warnings(decision, snapshot)
    return {**decision.to_dict(), "nodes": len(snapshot), "warnings": warnings, "soonest": None}


def metrics_warnings(decision: Decision, snapshot: Snapshot) -> list[str]:
    """On how many nodes real use is not known, and whether that of the chosen devices is."""
    missing = int(np.isnan(snapshot.columns.metrics_age_s).sum())
    stale = int((~snapshot.has_fresh_metrics(STALE_AFTER_S)).sum()) - missing
    found = [f"{_nodes(missing, len(snapshot))} no metrics"] if missing else []
    found += [f"{_nodes(stale, len(snapshot))} metrics older than {STALE_AFTER_S:g} s"] if stale else []
    warnings = [f"{which}: what is really used there is unknown" for which in found]
    if decision.placement is not None:
        node, chosen = snapshot.node(decision.placement.node_id), decision.placement.device_ids
        unknown = [device.id for device in node.devices if device.id in chosen and device.use is None]
        if unknown and node.metrics_age_s is not None:
            warnings.append(f"the real use of GPU {', '.join(unknown)} on {node.id} is unknown")
    return warnings


def soonest(
    decision: Decision, snapshot: Snapshot, leases: Iterable[Lease], since: Mapping[str, float]
) -> dict[str, Any] | None:
    """The node on which the fewest of roost's kernels would have to end for the request to have room, and which.

    Of equals, those that hold least. None where no such end would do. `since`: when kernels were started, by id.
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
    looked_at = sorted(by_node, key=lambda node_id: (node_id not in nearest, len(by_node[node_id]), node_id))
    found = []
    for node_id in looked_at[:_LOOKED_AT]:
        ended = _to_end(by_node[node_id], _has_room(decision, snapshot, node_id))
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


def _has_room(decision: Decision, snapshot: Snapshot, node_id: str) -> Callable[[Sequence[Lease]], bool]:
    """Whether the request fits a node once these leases are given back."""
    fits = Pipeline(name="fits", scorers=())

    def has_room(ended: Sequence[Lease]) -> bool:
        node = snapshot.node(node_id)
        for lease in ended:
            node = node.without_kernel(lease.request, lease.device_ids)
        return fits.place(decision.request, Snapshot.of([node])).placement is not None

    return has_room


def _to_end(leases: Iterable[Lease], has_room: Callable[[Sequence[Lease]], bool]) -> list[Lease]:
    """Few of the leases whose end makes room: the smallest that does alone, else all, less what can be spared."""
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
    """GPUs, then memory, then CPUs: what is hardest to find first."""
    return lease.request.gpus * 1e6 + lease.request.memory_bytes / 2**30 + lease.request.cpus * 1e-6


def _nodes(count: int, total: int) -> str:
    return f"{count} of {total} nodes {'has' if count == 1 else 'have'}"
