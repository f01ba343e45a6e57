"""The machines of a Dask cluster. Leases are in Dask's scheduler and workers (`dask_plugin`), kernels with agents.

Nobody asks again and again: the plugin answers when something has changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from roost.launchers.messages import NodeStatus, Owner
from roost.launchers.rpc import ClientKeys
from roost.launchers.wire import decode
from roost.placement import Node, Placement, Request
from roost.scheduler.agents import Agents
from roost.scheduler.config import Settings
from roost.scheduler.errors import BackendUnavailable, LeaseConflict

from . import dask_state
from .base import AgentAddress, Lease
from .dask_driver import DaskDriver
from .dask_state import DaskNode
from .managed import Claim, ManagedBackend
from .node_agents import Host

_LEASE_S = 15.0
_WAIT_S = 0.3
"""So long a lease waits for Dask's tasks to end, before the queue has it ask again."""
_WAIT_AGAIN_S = 5.0
"""So long it waits where a kernel that lives is to have it back: who waits comes before all tasks."""
_START_AGENT_S = 45.0


class DaskBackend(ManagedBackend[DaskNode]):
    """`folder` is for `agents.json`; the address is the settings', else that of Dask's own configuration."""

    name = "dask"
    _driver: DaskDriver

    def __init__(self, settings: Settings, agents: Agents, *, folder: Path) -> None:
        super().__init__(settings, settings.dask, agents, folder)

    def _connect(self) -> DaskDriver:
        return DaskDriver(self._settings.dask, self._on_nodes)

    def environment(self, lease: Lease) -> Mapping[str, str]:
        node = self._driver.nodes.get(lease.node_id)
        said = node.agent.get("environment", {}) if node is not None else {}
        return {"DASK_SCHEDULER_ADDRESS": self.address, **said}

    def _as_node(
        self, node: DaskNode, leases: Iterable[Lease], status: NodeStatus | None, metrics_age_s: float | None
    ) -> Node:
        return dask_state.as_node(node, status, metrics_age_s, self._driver.metrics.get(node.id))

    async def _claim(
        self,
        lease_id: str,
        request: Request,
        node: DaskNode,
        placement: Placement,
        owner: Owner,
        kernel_id: str,
    ) -> tuple[str, ...]:
        return await self._take(
            lease_id, kernel_id, owner.user, request, node, placement.device_ids, exactly=False
        )

    async def _claim_again(self, lease: Lease, node: DaskNode) -> None:
        await self._take(
            lease.id, lease.kernel_id, lease.owner.user, lease.request, node, lease.device_ids, exactly=True
        )

    async def _take(
        self,
        lease_id: str,
        kernel_id: str,
        user: str,
        request: Request,
        node: DaskNode,
        device_ids: tuple[str, ...],
        *,
        exactly: bool,
    ) -> tuple[str, ...]:
        answer = await self._driver.ask(
            "roost_lease",
            _LEASE_S,
            held={
                "lease_id": lease_id,
                "kernel_id": kernel_id,
                "user": user,
                "machine": node.id,
                "cpus": request.cpus,
                "memory_bytes": request.memory_bytes,
                "gpus": request.gpus,
                "resources": dict(request.resources),
            },
            preferred=list(device_ids),
            exactly=exactly,
            wait_s=_WAIT_AGAIN_S if exactly else _WAIT_S,
        )
        if "refused" in answer:
            raise LeaseConflict(answer["refused"])
        return tuple(answer["device_ids"])

    async def _give_back(self, lease: Lease) -> None:
        await self._driver.ask("roost_release", lease_id=lease.id)

    async def _claims(self) -> Collection[Claim]:
        return [Claim(lease=_bare_lease(held)) for held in await self._driver.ask("roost_leases")]

    def _shows(self, node: DaskNode, lease: Lease) -> bool:
        return lease.id in node.leases

    async def _is_claimed(self, lease: Lease) -> bool:
        return any(claim.lease.id == lease.id for claim in await self._claims())

    async def _ask_metrics(self) -> None:
        await self._driver.ask_metrics()

    def _on_nodes(self, changed: Collection[str], gone: Collection[str]) -> None:
        for node_id in changed:
            node = self._driver.nodes[node_id]
            if "endpoint" in node.agent:
                self._hosts.put(node_id, _host(node.agent))
        super()._on_nodes(changed, gone)

    async def _bring_up(self, node_id: str) -> Host:
        answer = await self._driver.ask("roost_agent", _START_AGENT_S, machine=node_id)
        if "problem" in answer:
            raise BackendUnavailable(f"no agent on {node_id}: {answer['problem']}")
        return _host(answer)


def _host(said: Mapping[str, Any]) -> Host:
    address = AgentAddress(endpoint=str(said["endpoint"]), keys=decode(ClientKeys, said["keys"]))
    return Host(address=address, daemon=str(said["told"]))


def _bare_lease(held: Mapping[str, Any]) -> Lease:
    """What the plugin in Dask's scheduler knows of a lease."""
    return Lease(
        id=held["lease_id"],
        kernel_id=held["kernel_id"],
        node_id=held["machine"],
        device_ids=tuple(held["device_ids"]),
        request=Request(
            cpus=held["cpus"],
            memory_bytes=held["memory_bytes"],
            gpus=held["gpus"],
            resources=dict(held["resources"]),
            owner=held["user"],
        ),
        owner=Owner(user=held["user"]),
    )
