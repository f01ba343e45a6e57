"""Decisions of foreign policies: written by the policy's process, read and checked by the service.

A decision crosses as JSON, so that no object of the policy comes into the service. The service checks the decision on
its own snapshot, so that no policy over-commits a node.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from roost.placement import Decision, Refusal, Request, Snapshot
from roost.placement.decision import SHOWN_REFUSALS
from roost.placement.pipeline import DEFAULT_FILTERS

_REFUSALS = "all_refusals"


def write_decision(answer: Any, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> bytes:
    """Return a policy's answer as JSON. Raises what `check_decision` raises, and errors of the answer's own code."""
    refusals = check_decision(answer, request, snapshot, avoid)
    document = {
        **answer.changed_to(request=Request()).to_dict(refusals=0),  # the reader knows the request
        _REFUSALS: [(each.node_id, each.filter, each.reason, each.when) for each in refusals],
    }
    return json.dumps(document, allow_nan=False, default=float).encode()


def read_decision(content: bytes, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> Decision:
    """Return the decision that `write_decision` wrote. Raises `ValueError` and what `check_decision` raises."""
    document = json.loads(content)
    refusals = []
    for entry in document.pop(_REFUSALS):
        if not all(type(part) is str for part in entry) or entry[3] not in ("now", "never"):
            raise ValueError(f"a refusal is {entry!s:.80}")
        refusals.append(Refusal(node_id=entry[0], filter=entry[1], reason=entry[2], when=entry[3]))
    facts = {"request": request, "snapshot_version": snapshot.version, "refusals": tuple(refusals)}
    # The service adds what the cluster could start.
    decision = Decision.from_dict(document).changed_to(
        **facts, new_node=None, type_refusals=(), may_grow=False
    )
    check_decision(decision, request, snapshot, avoid)
    return decision


def check_decision(
    answer: Any, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]
) -> tuple[Refusal, ...]:
    """Raise an error if the decision is not possible. Return the refusals that are shown: all of them, or the first."""
    answer = check_placement(answer, request, snapshot, avoid)
    shown = None if answer.placement is None else SHOWN_REFUSALS  # a queued start reads all of them
    refusals: tuple[Any, ...] = answer.first_refusals(shown)
    for refusal in refusals:
        if not isinstance(refusal, Refusal) or refusal.node_id not in snapshot:
            raise ValueError(f"it refuses {refusal!s:.80}, which is not a node")
    if answer.placement is None and len(snapshot) and not refusals and not answer.refused:
        raise ValueError("it gave neither a node nor a refusal")
    return refusals


def check_placement(answer: Any, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> Decision:
    """Return the answer as a decision; raise if the chosen node and devices cannot hold the request."""
    if not isinstance(answer, Decision):
        raise TypeError(f"place gave {type(answer).__name__}, not a Decision")
    placement = answer.placement
    if placement is None:
        return answer
    node_id, ids = placement.node_id, placement.device_ids
    if node_id not in snapshot:
        raise ValueError(f"it chose {node_id!r:.80}, but there is no such node")
    if node_id in avoid:
        raise ValueError(f"it chose {node_id}, which {avoid[node_id]}")
    row = snapshot.row(node_id)
    node, part = snapshot.at(row), snapshot.part(np.array([row]))
    for rule in DEFAULT_FILTERS:
        passes = rule.passes(request, part)
        if passes is not None and not passes[0]:
            raise ValueError(f"it chose {node_id}, which {rule.reason(request, node)}")
    free = {device.id for device in node.fitting_devices(request)} if request.gpus else set()
    for device_id in ids:
        if device_id not in free:
            raise ValueError(f"it chose device {device_id!r:.80} of {node_id}, which is missing or not free")
    if len(set(ids)) != len(ids) or len(ids) not in (0, request.gpu_count):
        raise ValueError(f"it chose {len(ids)} devices ({', '.join(ids):.80}) for {request.describe()}")
    if not all(math.isfinite(number) for number in (placement.score, *placement.terms.values())):
        raise ValueError(f"its score for {node_id} is not a finite number")
    return answer
