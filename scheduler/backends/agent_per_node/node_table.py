"""What a backend knows of nodes and leases, drawn as one snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Generic

from roost.launchers.protocol.messages import NodeStatus
from roost.placement import Node, Request, Snapshot, get_policy
from roost.scheduler.backends.base import Lease

from .driver import N

_ANY = get_policy("pack")
"""Its filters say whether a request fits; how it ranks does not matter on one node."""

AsNode = Callable[[N, Iterable[Lease], "NodeStatus | None", "float | None"], Node]
"""The node of the snapshot, with the leases known on it, what its agent has said, and how many seconds ago."""


class Picture(Generic[N]):
    """`leases` by id, whoever holds them; of these the shares of devices are known. `status`: see `NodeAgents`.

    After a change `draw` brings the snapshot up to date.
    """

    def __init__(self, as_node: AsNode[N], status: Mapping[str, tuple[NodeStatus, float]]) -> None:
        self.leases: dict[str, Lease] = {}
        self._as_node = as_node
        self._status = status
        self._snapshot = Snapshot.of([])
        self._taken_at = 0.0

    def snapshot(self) -> Snapshot:
        return self._snapshot.older_by(time.monotonic() - self._taken_at)

    def draw(self, nodes: Mapping[str, N], node_ids: Collection[str]) -> bool:
        """Draw these nodes again; those that are not in `nodes` are gone. Whether that changed the snapshot."""
        held: dict[str, list[Lease]] = {name: [] for name in node_ids if name in nodes}
        for lease in self.leases.values():
            if lease.node_id in held:
                held[lease.node_id].append(lease)
        drawn = [self._as_node(nodes[name], leases, *self._metrics(name)) for name, leases in held.items()]
        changed = [
            node for node in drawn if node.id not in self._snapshot or self._snapshot.node(node.id) != node
        ]
        gone = [name for name in node_ids if name not in nodes and name in self._snapshot]
        if not changed and not gone:
            return False
        self._snapshot = self._snapshot.apply(changed, removed=gone)
        return True

    def draw_status(self, nodes: Mapping[str, N], node_ids: Collection[str]) -> None:
        """Draw these nodes, of which new metrics are known: they are as old as that from now on."""
        self._taken_at = time.monotonic()
        self.draw(nodes, node_ids)

    def has_room(self, node_id: str, request: Request, ahead: int) -> bool:
        """Whether that request would fit there, by all that is known, after so many of its kind."""
        if node_id not in self._snapshot:
            return False
        node = self._snapshot.node(node_id)
        for _ in range(ahead + 1):
            placement = _ANY.place(request, Snapshot.of([node])).placement
            if placement is None:
                return False
            node = node.with_kernel(request, placement.device_ids)
        return True

    def _metrics(self, node_id: str) -> tuple[NodeStatus | None, float | None]:
        status, at = self._status.get(node_id, (None, 0.0))
        if status is None or status.metrics_age_s is None:
            return status, None
        return status, status.metrics_age_s + max(0.0, self._taken_at - at)
