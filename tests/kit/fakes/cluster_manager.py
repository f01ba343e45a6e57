"""A cluster manager in this process, for tests of the backend of agents per node."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from roost.launchers.protocol.messages import Lease
from roost.placement import Node
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.errors import BackendUnavailable, LeaseConflict
from roost.scheduler.messages import Finding
from roost.testing import FakeAgent


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeNode:
    id: str
    daemon: str = "1"
    started_agent: StartedAgent | None = None


class FakeManager:
    """A cluster manager with one node of 4 CPUs for each agent.

    `problem` is the reason why the manager does not answer, `refusal` the reason why it refuses claims. `left` has the
    nodes that have left. `hold` makes all calls of one name wait for the event that it returns.
    """

    name = "Fake"
    daemon = "daemon"
    claim_name = "claim"
    other_holders = "fake tasks"
    holds_claims = True

    def __init__(self, *agents: FakeAgent) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self.granted: dict[str, Lease] = {}
        self.problem = ""
        self.refusal = ""
        self.broken = ""
        """Why no agent starts."""
        self.started: list[str] = []
        self.left: set[str] = set()
        self.findings: list[Finding] = []
        self.calls: list[str] = []
        self.held: dict[str, asyncio.Event] = {}
        self.membership: Membership[FakeNode] = Membership("Fake", join=self._join, fetch=self._fetch)

    async def close(self) -> None: ...

    async def wait_until_described(self) -> None: ...

    async def wait_for_change(self) -> None:
        await asyncio.sleep(0.01)

    async def read_metrics(self) -> Collection[str]:
        return ()

    def build_node(self, node: FakeNode, status: Node | None) -> Node:
        built = Node(id=node.id, cpus=4)
        if status is None:
            return built
        return replace(
            built,
            cpus_promised=status.cpus_promised,
            kernels=status.kernels,
            owners=status.owners,
            cpus_used=status.cpus_used,
            metrics_age_s=status.metrics_age_s,
        )

    async def environment(self, lease: Lease, address: str) -> Mapping[str, str]:
        return {"FAKE_ADDRESS": address}

    async def claim(
        self, lease: Lease, node: FakeNode, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        await self._call_and_wait("claim again" if again else "claim")
        if self.refusal:
            raise LeaseConflict(self.refusal)
        self.granted[lease.id] = lease
        return ()

    def can_take_on(self, node: FakeNode) -> bool:
        return True

    async def release(self, lease: Lease) -> None:
        self._call("release")
        self.granted.pop(lease.id, None)

    async def claims(self) -> Sequence[Lease]:
        await self._call_and_wait("claims")
        return [
            replace(lease, state="lost", reason="it left") if lease.node_id in self.left else lease
            for lease in self.granted.values()
        ]

    def unclaimed(self, leases: Sequence[Lease], node: FakeNode) -> list[Lease]:
        return [lease for lease in leases if lease.id not in self.granted]

    async def start_agent(self, node_id: str) -> StartedAgent:
        self.membership.check()
        if node_id not in self.agents:
            raise BackendUnavailable(f"there is no node {node_id}")
        if self.broken:
            raise BackendUnavailable(self.broken)
        self.started.append(node_id)
        return StartedAgent(address=self.agents[node_id].address, daemon="1")

    async def diagnose(self) -> list[Finding]:
        return self.findings

    def hold(self, name: str) -> asyncio.Event:
        self.held[name] = asyncio.Event()
        return self.held[name]

    async def _call_and_wait(self, name: str) -> None:
        self._call(name)
        if name in self.held:
            await self.held[name].wait()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.problem:
            raise BackendUnavailable(self.problem)

    async def _join(self, address: str) -> str:
        self._call("join")
        return "fake:1"

    async def _fetch(self) -> Iterable[FakeNode]:
        self._call("fetch")
        return [FakeNode(id=name) for name in self.agents if name not in self.left]
