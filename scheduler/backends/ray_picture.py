"""What the Ray backend knows of nodes and leases, drawn as one snapshot."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Set
from dataclasses import replace

from roost.launchers.messages import NodeStatus, Owner
from roost.placement import Request, Snapshot, policy

from . import ray_state
from .base import Lease
from .ray_groups import Group
from .ray_state import RayNode

_ANY = policy("pack")
"""Its filters say whether a request fits; how it ranks does not matter on one node."""


class RayPicture:
    """`leases` by id, whoever holds them; of these the shares of devices are known. `status` and `ended`: see
    `RayAgents`.

    After a change `draw` brings the snapshot up to date.
    """

    def __init__(self, status: Mapping[str, tuple[NodeStatus, float]], ended: Set[str]) -> None:
        self.leases: dict[str, Lease] = {}
        self._status = status
        self._ended = ended
        self._snapshot = Snapshot.of([])
        self._taken_at = 0.0

    def snapshot(self) -> Snapshot:
        return self._snapshot.aged(time.monotonic() - self._taken_at)

    def draw(self, nodes: Mapping[str, RayNode], node_ids: Collection[str]) -> bool:
        """Draw these nodes again; those that are not in `nodes` are gone. Whether that changed the snapshot."""
        held: dict[str, list[Lease]] = {name: [] for name in node_ids if name in nodes}
        for lease in self.leases.values():
            if lease.node_id in held:
                held[lease.node_id].append(lease)
        drawn = [
            ray_state.as_node(self._as_told(nodes[name]), leases, *self._metrics(name))
            for name, leases in held.items()
        ]
        changed = [
            node for node in drawn if node.id not in self._snapshot or self._snapshot.node(node.id) != node
        ]
        gone = [name for name in node_ids if name not in nodes and name in self._snapshot]
        if not changed and not gone:
            return False
        self._snapshot = self._snapshot.apply(changed, removed=gone)
        return True

    def draw_status(self, nodes: Mapping[str, RayNode]) -> None:
        """Draw all nodes whose agents have said how they are: their metrics are as old as that from now on."""
        self._taken_at = time.monotonic()
        self.draw(nodes, list(self._status))

    def has_room(self, node_id: str, request: Request, ahead: int) -> bool:
        """Whether that request would fit there, by all that is known, after so many of its kind."""
        if node_id not in self._snapshot:
            return False
        node = self._snapshot.node(node_id)
        for _ in range(ahead + 1):
            placement = _ANY.place(request, Snapshot.of([node])).placement
            if placement is None:
                return False
            node = node.holding(request, placement.device_ids)
        return True

    def _as_told(self, node: RayNode) -> RayNode:
        """A node whose raylet has ended gets nothing new, though Ray does not know of that yet."""
        return replace(node, drains_because="its raylet has ended") if node.ray_id in self._ended else node

    def _metrics(self, node_id: str) -> tuple[NodeStatus | None, float | None]:
        status, at = self._status.get(node_id, (None, 0.0))
        if status is None or status.metrics_age_s is None:
            return status, None
        return status, status.metrics_age_s + max(0.0, self._taken_at - at)


def bare_lease(group: Group, node_id: str) -> Lease:
    """What a group alone says of a lease of which no agent has noted anything yet, or any more."""
    amounts = group.amounts
    return Lease(
        id=group.lease_id,
        kernel_id=group.kernel_id,
        node_id=node_id,
        device_ids=(),
        request=Request(
            cpus=amounts.get("CPU", 0.0),
            memory_bytes=int(amounts.get("memory", 0)),
            gpus=amounts.get("GPU", 0.0),
            resources={name: amounts[name] for name in ray_state.custom(amounts)},
            owner=group.user,
        ),
        owner=Owner(user=group.user),
    )
