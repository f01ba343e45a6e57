"""The nodes of a Ray cluster. Leases are Ray's placement groups, kernels belong to an agent on each node.

The driver is this process, which Ray ends a minute after its head is gone; the next service then serves the kernels
that live while Ray is away.

One reading of Ray's state (0.4 ms) brings the picture up to date: twice a second, and before a placement.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.protocol.json_codec import decode
from roost.launchers.protocol.messages import NodeStatus
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Node
from roost.scheduler.backends.agent_per_node.agents import Host
from roost.scheduler.backends.agent_per_node.backend import ManagedBackend
from roost.scheduler.backends.base import AgentAddress, Lease
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.errors import BackendUnavailable

from . import agent_task, nodes, placement_groups
from .driver import RayDriver
from .leases import RayClaims
from .nodes import RayNode

_START_AGENT_S = 45.0


class RayBackend(ManagedBackend[RayNode]):
    """`folder` is for `agents.json`; `address` of the cluster, else of the settings, else the one of this machine."""

    name = "ray"
    _driver: RayDriver
    _claims: RayClaims

    def __init__(self, settings: Settings, agents: Agents, *, folder: Path) -> None:
        super().__init__(settings, settings.ray, agents, folder)

    def environment(self, lease: Lease) -> Mapping[str, str]:
        return {
            "RAY_ADDRESS": self.address,
            "RAY_NAMESPACE": placement_groups.NAMESPACE,
            "ROOST_PLACEMENT_GROUP": placement_groups.group_name(lease.id, lease.owner.user),
        }

    def _connect(self) -> RayDriver:
        return RayDriver(self._settings.ray, self._on_nodes)

    def _claim(self) -> RayClaims:
        return RayClaims(self._driver, self._picture.has_room, self._hosts)

    def _as_node(
        self, node: RayNode, leases: Iterable[Lease], status: NodeStatus | None, metrics_age_s: float | None
    ) -> Node:
        return nodes.as_node(node, leases, status, metrics_age_s)

    def _on_nodes(self, changed: Collection[str], gone: Collection[str]) -> None:
        self._claims.keep_anchors({node.ray_id for node in self._driver.nodes.values()})
        super()._on_nodes(changed, gone)

    async def _bring_up(self, node_id: str) -> Host:
        node = self._driver.nodes.get(node_id)
        if self._driver.away or node is None:
            raise BackendUnavailable(
                f"there is no agent on {node_id}: {self._driver.away or 'no such node in Ray'}"
            )
        settings = AgentSettings(
            cpus=node.total.get("CPU", 0.0),
            memory_bytes=int(node.total.get("memory", 0)),
            idle_exit_s=self._options.agent_idle_exit_s,
            preload=self._options.preload,
            address=node.address,
            is_remote=True,
            gpu_visibility="manager",
        )
        reference = await self._driver.ask(
            agent_task.agent_on,
            node,
            settings,
            cluster_address=self.address,
            grace_s=self._options.manager_grace_s,
            python=self._options.python,
        )
        answer = await self._driver.answer(reference, _START_AGENT_S, f"to start roost's agent on {node_id}")
        if "problem" in answer:
            raise BackendUnavailable(f"no agent on {node_id}: {answer['problem']}")
        address = AgentAddress(endpoint=answer["endpoint"], keys=decode(ClientKeys, answer["keys"]))
        return Host(address=address, daemon=node.ray_id)
