"""The GPUs that others than roost hold while a request waits: a cluster's own actors and tasks."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import TypedDict

from roost.placement import Decision, Snapshot
from roost.placement.model.format import format_amount, format_count
from roost.scheduler.backends.base import Backend, Lease
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import format_names

_NAMED_S = 0.2
"""How long the cluster may take to name the holders. A notebook waits half a second for the whole explanation."""
_EXACT = 1e-3
"""The difference between two sums of shares that counts as none."""


class OtherHolders(TypedDict):
    """The GPUs that others hold on the nodes that could take the request if they were empty."""

    gpus: float
    of: int
    """All GPUs of these nodes."""
    holders: list[str]
    """Some of the holders, as far as the cluster names them."""
    text: str
    """All of this as a clause."""


async def find_others(
    decision: Decision, snapshot: Snapshot, leases: Iterable[Lease], backend: Backend
) -> OtherHolders | None:
    """Return who holds the GPUs that a request lacks, besides the kernels in `leases`; None if nobody does.

    None too if the backend does not tell what else its cluster runs.
    """
    if not backend.other_holders:
        return None
    never = {refusal.node_id for refusal in decision.refusals if refusal.when == "never"}
    full = {refusal.node_id for refusal in decision.refusals if refusal.filter == "gpu"} - never
    by_kernels: defaultdict[str, float] = defaultdict(float)
    for lease in leases:
        by_kernels[lease.node_id] += lease.request.gpus
    held: dict[str, float] = {}
    for node_id in full:
        by_others = snapshot.node(node_id).gpus_promised - by_kernels[node_id]
        if by_others > _EXACT:
            held[node_id] = by_others
    if not held:
        return None
    gpus, total = round(sum(held.values()), 3), sum(snapshot.node(node_id).gpus for node_id in full)
    named: list[str] = []
    with suppress(RoostError, asyncio.TimeoutError):
        named = list(await asyncio.wait_for(backend.name_holders(held.keys()), _NAMED_S))
    verb = "is" if gpus <= 1 else "are"
    held_by = f"{verb} held by {backend.other_holders} that roost did not start"
    text = f"{format_amount(gpus)} of {format_count(total, 'GPU')} {held_by}"
    if named:
        text += f" ({format_names(named)})"
    return {"gpus": gpus, "of": total, "holders": named, "text": text}
