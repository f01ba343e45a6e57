"""The backend of the simulated cluster. Its manager grants each lease at once, after one message."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from traitlets import Unicode

from roost.launchers.protocol import agent_client
from roost.launchers.protocol.messages import Lease
from roost.launchers.protocol.rpc import RpcError
from roost.launchers.protocol.rpc_client import RpcClient
from roost.placement import Node
from roost.placement.model.json_codec import decode
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings
from roost.scheduler.backends.base import BackendContext
from roost.scheduler.errors import BackendUnavailable, LeaseConflict

from . import NAME
from .relay import SCHEME, Relay

_ANSWER_S = 60.0
_READ_AGAIN_S = 1.0


class RoostSimulatedBackend(AgentPerNodeSettings):
    """The settings of the backend for the simulated cluster."""

    address = Unicode("", help="The socket of the simulated manager.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedNode:
    """A node of the simulated cluster: `empty` is the node without kernels."""

    id: str
    daemon: str
    empty: Node
    started_agent: StartedAgent | None


class SimulatedManager:
    """The backend's connection to the simulated cluster manager, a process that the benchmark has started."""

    name = "simulated"
    daemon = "simulated daemon"
    holds_claims = True
    claim_name = "claim"
    other_holders = ""
    cluster_id = ""

    def __init__(self, socket: str) -> None:
        self.membership: Membership[SimulatedNode] = Membership(self.name, join=self._join, fetch=self._fetch)
        self._client = RpcClient(socket, on_event=lambda event: self._relay.receive(event))
        self._relay = Relay(self._client)
        self._nodes: list[SimulatedNode] = []

    def places(self) -> Sequence[str]:
        return ()

    async def close(self) -> None:
        await self._client.close()

    async def wait_until_described(self) -> None:
        return None

    async def wait_for_change(self) -> None:
        await asyncio.sleep(_READ_AGAIN_S)

    async def read_metrics(self) -> Collection[str]:
        return ()

    def build_node(self, node: SimulatedNode, status: Node | None) -> Node:
        return status or node.empty

    def environment(self, lease: Lease, address: str) -> Mapping[str, str]:
        return {}

    async def claim(
        self, lease: Lease, node: SimulatedNode, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        if not await self._ask("claim", lease):
            raise LeaseConflict(f"{node.id} has no room")
        return lease.device_ids

    def can_take_on(self, node: SimulatedNode) -> bool:
        return True

    async def release(self, lease: Lease) -> None:
        await self._ask("release", {"lease_id": lease.id})

    async def claims(self) -> Sequence[Lease]:
        found: list[Lease] = []
        while page := await self._ask("claims", {"after": len(found)}):
            found += [decode(Lease, lease) for lease in page]
        return found

    def unclaimed(self, leases: Sequence[Lease], node: SimulatedNode) -> Sequence[Lease]:
        return ()

    async def find(self, lease: Lease) -> bool:
        return bool(await self._ask("has_claim", {"lease_id": lease.id}))

    async def start_agent(self, node_id: str) -> StartedAgent:
        agent = self.membership.nodes[node_id].started_agent
        assert agent is not None
        return agent

    async def _join(self, address: str) -> str:
        await self._client.connect(timeout_s=_ANSWER_S)
        await self._ask("subscribe", None)
        while page := await self._ask("nodes", {"after": len(self._nodes)}):
            for empty, agent in page:
                node = decode(Node, empty)
                if agent["address"]["endpoint"].startswith(SCHEME):
                    # Then all agents of this process do, so one change of its client is enough.
                    agent_client.RpcClient = self._relay.open  # type: ignore[misc, assignment]
                self._nodes.append(
                    SimulatedNode(
                        id=node.id, daemon=node.id, empty=node, started_agent=decode(StartedAgent, agent)
                    )
                )
        return "in the memory of another process"

    async def _fetch(self) -> list[SimulatedNode]:
        return self._nodes

    async def _ask(self, op: str, arguments: Any) -> Any:
        try:
            return await self._client.call(op, arguments, timeout_s=_ANSWER_S)
        except (RpcError, asyncio.TimeoutError) as problem:
            raise BackendUnavailable(f"the simulated manager does not answer: {problem}") from problem


def create(settings: RoostSimulatedBackend, context: BackendContext) -> AgentPerNodeBackend[SimulatedNode]:
    """Return the backend for the simulated cluster."""
    return AgentPerNodeBackend(
        NAME,
        SimulatedManager(settings.address),
        settings.agent_settings(),
        context,
        grace_s=settings.manager_grace_s,
    )
