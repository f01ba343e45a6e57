"""The nodes and leases of one cluster, and the snapshot that is built from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Generic

from roost.placement import Device, Node, Request, Snapshot, get_policy
from roost.scheduler.backends.base import Lease

from .membership import N

_ANY_POLICY = get_policy("pack")
"""A policy whose filters decide if a request fits. Its ranking does not matter on one node."""


class Leases(MutableMapping[str, Lease]):
    """Leases by id. `on` finds the leases of one node without a search through all leases."""

    def __init__(self, leases: Iterable[Lease] = ()) -> None:
        self._by_id: dict[str, Lease] = {}
        self._by_node: dict[str, dict[str, Lease]] = {}
        for lease in leases:
            self[lease.id] = lease

    def nodes(self) -> list[str]:
        """Return the ids of the nodes with leases."""
        return list(self._by_node)

    def on(self, node_id: str) -> list[Lease]:
        return list(self._by_node.get(node_id, {}).values())

    def __getitem__(self, lease_id: str) -> Lease:
        return self._by_id[lease_id]

    def __setitem__(self, lease_id: str, lease: Lease) -> None:
        if lease_id in self._by_id and self._by_id[lease_id].node_id != lease.node_id:
            del self[lease_id]
        self._by_id[lease_id] = self._by_node.setdefault(lease.node_id, {})[lease_id] = lease

    def __delitem__(self, lease_id: str) -> None:
        node_id = self._by_id.pop(lease_id).node_id
        of_node = self._by_node[node_id]
        del of_node[lease_id]
        if not of_node:
            del self._by_node[node_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)


class NodeTable(Generic[N]):
    """The known `leases` of all schedulers by id, and the snapshot that `update` keeps up to date."""

    def __init__(self, build_node: Callable[[N, Sequence[Lease]], Node]) -> None:
        self._build_node = build_node
        self.leases = Leases()
        self._snapshot = Snapshot.of([])
        self._measured_at = time.monotonic()

    def snapshot(self) -> Snapshot:
        """Return the snapshot. Its metrics ages include the time since the last measurement."""
        return self._snapshot.older_by(time.monotonic() - self._measured_at)

    def update(self, nodes: Mapping[str, N], node_ids: Collection[str]) -> bool:
        """Rebuild these nodes of the snapshot; remove those missing in `nodes`. Return True if it changed."""
        built = [
            self._build_node(nodes[name], self.leases.on(name))
            for name in dict.fromkeys(node_ids)
            if name in nodes
        ]
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
        """True if `ahead + 1` requests like this one would fit on the node, according to the snapshot."""
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
    """Return the device called `name`, with the facts that the node's agent has `seen`.

    `name` is the id or the index of a device in `seen`. `promised` is the promised share of the device.
    """
    found = next((device for device in seen if device.id == name), None)
    if found is None and name.isdigit() and int(name) < len(seen):
        found = seen[int(name)]
    promised = min(1.0, promised)
    if found is None:
        return Device(id=name, model=model, promised=promised)
    return replace(found, id=name, model=model or found.model, promised=promised)
