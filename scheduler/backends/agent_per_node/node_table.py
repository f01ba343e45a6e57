"""The nodes and leases of one cluster, drawn as one snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Generic

from roost.placement import Device, Node, Request, Snapshot, get_policy
from roost.scheduler.backends.base import Lease

from .membership import N

_ANY_POLICY = get_policy("pack")
"""A policy whose filters decide if a request fits. Its ranking does not matter on one node."""


class NodeTable(Generic[N]):
    """The known `leases` of all schedulers by id, and the snapshot that `update` keeps up to date."""

    def __init__(self, build_node: Callable[[N, Sequence[Lease], float], Node]) -> None:
        self._build_node = build_node
        self.leases: dict[str, Lease] = {}
        self._snapshot = Snapshot.of([])
        self._measured_at = 0.0

    def snapshot(self) -> Snapshot:
        """Return the snapshot, with metrics as old as they are now."""
        return self._snapshot.older_by(time.monotonic() - self._measured_at)

    def update(self, nodes: Mapping[str, N], node_ids: Collection[str]) -> bool:
        """Rebuild these nodes of the snapshot; remove those missing in `nodes`. Return True if it changed."""
        held: dict[str, list[Lease]] = {name: [] for name in node_ids if name in nodes}
        for lease in self.leases.values():
            if lease.node_id in held:
                held[lease.node_id].append(lease)
        built = [self._build_node(nodes[name], leases, self._measured_at) for name, leases in held.items()]
        before = self._snapshot
        changed = [node for node in built if node.id not in before or before.node(node.id) != node]
        gone = [name for name in node_ids if name not in nodes and name in before]
        if not changed and not gone:
            return False
        self._snapshot = before.apply(changed, removed=gone)
        return True

    def update_metrics(self, nodes: Mapping[str, N], node_ids: Collection[str]) -> None:
        """Rebuild these nodes of the snapshot, because their metrics are new."""
        self._measured_at = time.monotonic()
        self.update(nodes, node_ids)

    def has_room(self, node_id: str, request: Request, ahead: int) -> bool:
        """True if the request would fit on this node after `ahead` requests like it, by all that is known."""
        if node_id not in self._snapshot:
            return False
        node = self._snapshot.node(node_id)
        for _ in range(ahead + 1):
            placement = _ANY_POLICY.place(request, Snapshot.of([node])).placement
            if placement is None:
                return False
            node = node.with_kernel(request, placement.device_ids)
        return True


def build_device(name: str, seen: Sequence[Device], *, promised: float, model: str = "") -> Device:
    """Return the device called `name`: an id, or a number among the devices `seen` by the node's agent."""
    found = next((device for device in seen if device.id == name), None)
    if found is None and name.isdigit() and int(name) < len(seen):
        found = seen[int(name)]
    found = found or Device(id=name)
    return replace(found, id=name, model=model or found.model, promised=min(1.0, promised))
