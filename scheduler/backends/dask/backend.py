"""The machines of a Dask cluster. Leases are in Dask's scheduler and workers (`dask_plugin`), kernels with agents.

Nobody asks again and again: the plugin answers when something has changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

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

from . import nodes
from .driver import DaskDriver
from .leases import DaskClaims
from .nodes import DaskNode

_START_AGENT_S = 45.0
_FIRST_AGENTS_S = 5.0
"""So long the first agents of a cluster may take to say of which models its GPUs are; they need 1 to 2 s."""


class DaskBackend(ManagedBackend[DaskNode]):
    """`folder` is for `agents.json`; the address is the settings', else that of Dask's own configuration."""

    name = "dask"
    _driver: DaskDriver

    def __init__(self, settings: Settings, agents: Agents, *, folder: Path) -> None:
        super().__init__(settings, settings.dask, agents, folder)

    async def open(self) -> None:
        await super().open()
        await self._driver.until_seen(_FIRST_AGENTS_S)

    def _connect(self) -> DaskDriver:
        return DaskDriver(self._settings.dask, self._on_nodes)

    def environment(self, lease: Lease) -> Mapping[str, str]:
        node = self._driver.nodes.get(lease.node_id)
        said = node.agent.get("environment", {}) if node is not None else {}
        return {"DASK_SCHEDULER_ADDRESS": self.address, **said}

    def _claim(self) -> DaskClaims:
        return DaskClaims(self._driver)

    def _as_node(
        self, node: DaskNode, leases: Iterable[Lease], status: NodeStatus | None, metrics_age_s: float | None
    ) -> Node:
        return nodes.as_node(node, status, metrics_age_s, self._driver.metrics.get(node.id))

    async def _ask_metrics(self) -> Collection[str]:
        await self._driver.ask_metrics()
        return self._driver.metrics

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
