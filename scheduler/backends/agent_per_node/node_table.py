"""The snapshot of one cluster, which is built from its nodes and their agents' reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Generic

from roost.placement import Device, Node, Request, Snapshot, get_policy

from .membership import N

_ANY_POLICY = get_policy("pack")
"""A policy whose filters decide if a request fits. Its ranking does not matter on one node."""


class NodeTable(Generic[N]):
    """The snapshot that `update` keeps up to date."""

    def __init__(self, build_node: Callable[[N], Node]) -> None:
        self._build_node = build_node
        self._snapshot = Snapshot.of([])
        self._measured_at = time.monotonic()

    def snapshot(self) -> Snapshot:
        """Return the snapshot. Its metrics ages include the time since the last measurement."""
        return self._snapshot.older_by(time.monotonic() - self._measured_at)

    def node(self, node_id: str) -> Node | None:
        """Return a node as it was built last, without the time since then; None if it is not in the snapshot."""
        return self._snapshot.node(node_id) if node_id in self._snapshot else None

    def update(self, nodes: Mapping[str, N], node_ids: Collection[str]) -> bool:
        """Rebuild these nodes of the snapshot; remove those missing in `nodes`. Return True if it changed."""
        built = [self._build_node(nodes[name]) for name in dict.fromkeys(node_ids) if name in nodes]
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

    def has_room(self, node_id: str, request: Request) -> bool:
        """True if the request would fit on the node, according to the snapshot."""
        node = self.node(node_id)
        return node is not None and _ANY_POLICY.place(request, Snapshot.of([node])).placement is not None


def build_device(name: str, seen: Sequence[Device], *, promised: float, model: str = "") -> Device:
    """Return the device called `name`, with the facts that the node's agent has `seen`.

    `name` is the id or the index of a device in `seen`. `promised` is the promised share of the device. A device
    without facts is one that the agent has not seen, but has noted as promised.
    """
    seen = [device for device in seen if device.model or device.memory_bytes]
    found = next((device for device in seen if device.id == name), None)
    if found is None and name.isdigit() and int(name) < len(seen):
        found = seen[int(name)]
    promised = min(1.0, promised)
    if found is None:
        return Device(id=name, model=model, promised=promised)
    return replace(found, id=name, model=model or found.model, promised=promised)
