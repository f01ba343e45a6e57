"""Leases that wait for a new node, over a fake cluster manager and fake agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.cluster_manager import FakeManager
from kit.fakes.scheduler import FakeAgent
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, NodeType, Request, Snapshot
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.new_nodes import NewNodes
from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings
from roost.scheduler.errors import BackendUnavailable
from roost.testing import backend_context
from roost.testing.deadlines import until

LEASE = Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada", pid=7), request=Request(cpus=1))
WAITS = replace(LEASE, state="pending", reason="a node is being started")


class FakeNewNodes(NewNodes):
    """A cluster that starts nodes of one type. `at` has the node of each granted claim."""

    after_s = 30.0
    start_timeout_s = 900.0
    adds_nodes = False
    is_still_reading = False
    may_grow = True

    def __init__(self, manager: FakeManager) -> None:
        self.manager = manager
        self.at: dict[str, str] = {}
        self.kept: list[str] = []
        self.on_change: Callable[[], None] = lambda: None

    def listen(self, on_change: Callable[[], None]) -> None:
        self.on_change = on_change

    def list_types(self, snapshot: Snapshot) -> Sequence[NodeType]:
        return (NodeType(node=Node(id="big", cpus=8), limit=1),)

    def why_not(self, request: Request) -> str:
        return "not by label" if request.labels else ""

    async def ask(self, lease: Lease) -> None:
        if self.manager.problem:
            raise BackendUnavailable(self.manager.problem)
        self.manager.granted[lease.id] = replace(WAITS, id=lease.id, owner=Owner(user="ada"))

    async def follow(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        return [self._show(lease) for lease in leases]

    def hold(self, lease: Lease) -> None:
        self.kept.append(f"hold {lease.id}")

    async def settle(self, lease: Lease) -> None:
        self.kept.append(f"settle {lease.id}")

    def _show(self, lease: Lease) -> Lease:
        if lease.id not in self.manager.granted:
            return replace(lease, state="lost", reason="it was removed")
        if node_id := self.at.get(lease.id):
            return replace(lease, state="pending", node_id=node_id)
        return replace(lease, state="pending", reason=WAITS.reason)


class Growing:
    """An open backend on a cluster that grows, and what its book has shown."""

    def __init__(self, folder: Path, agent: FakeAgent) -> None:
        self.agent = agent
        self.manager = FakeManager(agent)
        self.new_nodes = FakeNewNodes(self.manager)
        self.agents = Agents()
        settings = AgentPerNodeSettings().agent_settings()
        self.backend = AgentPerNodeBackend(
            "fake",
            self.manager,
            settings,
            backend_context(self.agents, folder),
            grace_s=60.0,
            new_nodes=self.new_nodes,
        )
        self.shown: list[Lease] = []
        self.backend.book.listen(self.shown.append)

    async def until(self, state: str) -> Lease:
        """Wait until the lease has been shown in this state; return it."""

        def find() -> Lease | None:
            return next((lease for lease in self.shown if lease.state == state), None)

        return await until(find, lambda: f"the lease is {state}: {self.shown}", 60, 0.01)


@pytest.fixture
async def growing(tmp_path: Path) -> AsyncIterator[Growing]:
    agent = FakeAgent(tmp_path / "agent")
    growing = Growing(tmp_path, agent)
    await growing.backend.open()
    yield growing
    await growing.backend.close()
    await growing.agents.close()
    await agent.close()


async def test_what_the_cluster_could_start_is_known_after_a_change(growing: Growing) -> None:
    assert growing.backend.growth is growing.new_nodes
    growing.new_nodes.on_change()
    assert (await anext(growing.backend.events())).kind == "nodes"


async def test_a_lease_is_held_on_the_node_that_the_manager_grants(growing: Growing) -> None:
    assert await growing.backend.claim(LEASE) == WAITS
    assert await growing.backend.claim(LEASE) == WAITS  # it may be repeated
    assert growing.agent.held_leases() == []
    growing.new_nodes.at[LEASE.id] = "here"
    held = await growing.until("held")
    assert held == replace(LEASE, node_id="here", state="held")
    assert growing.agent.held_leases() == [LEASE.id]
    assert "roost's agent starts on here" in [lease.reason for lease in growing.shown]
    assert growing.new_nodes.kept == [f"hold {LEASE.id}", f"settle {LEASE.id}"]


async def test_a_reading_of_all_leases_keeps_a_lease_that_waits(growing: Growing) -> None:
    await growing.backend.claim(LEASE)
    reading = await growing.backend.leases()
    assert (reading.leases, reading.processes) == ((WAITS,), {LEASE.id: None})


async def test_the_next_service_finds_a_lease_that_waits_and_follows_it(growing: Growing) -> None:
    await growing.new_nodes.ask(LEASE)  # by the earlier service
    (found,) = (await growing.backend.leases()).leases
    assert (found.state, found.node_id) == ("pending", "")
    await growing.backend.claim(replace(found, owner=LEASE.owner))
    growing.new_nodes.at[LEASE.id] = "here"
    assert (await growing.until("held")).owner == LEASE.owner


async def test_a_released_lease_waits_no_longer(growing: Growing) -> None:
    await growing.backend.claim(LEASE)
    await growing.backend.release(WAITS)
    assert (growing.manager.granted, growing.agent.calls) == ({}, [])
    growing.new_nodes.at[LEASE.id] = "here"
    assert (await growing.backend.leases()).leases == ()
    assert growing.backend.book.is_released(LEASE.id)


async def test_a_lease_that_is_released_while_its_agent_starts_leaves_nothing(growing: Growing) -> None:
    goes_on = growing.manager.hold("claim")
    await growing.backend.claim(LEASE)
    growing.new_nodes.at[LEASE.id] = "here"
    await until(lambda: "claim" in growing.manager.calls, "the manager gets the claim", 60, 0.01)
    await growing.backend.release(growing.backend.book.get(LEASE.id) or LEASE)
    goes_on.set()
    assert (growing.manager.granted, growing.agent.held_leases()) == ({}, [])


async def test_a_claim_that_is_gone_is_lost_and_may_be_repeated(growing: Growing) -> None:
    await growing.backend.claim(LEASE)
    growing.manager.granted.clear()
    lost = await growing.until("lost")
    assert (lost.reason, lost.is_final) == ("it was removed", False)


async def test_a_start_fails_if_no_agent_starts_on_the_new_node(growing: Growing) -> None:
    growing.manager.broken = "its Python has no ipykernel"
    await growing.backend.claim(LEASE)
    growing.new_nodes.at[LEASE.id] = "here"
    lost = await growing.until("lost")
    assert (lost.reason, lost.is_final) == ("its Python has no ipykernel", True)


async def test_nothing_waits_if_the_manager_cannot_be_asked(growing: Growing) -> None:
    growing.manager.problem = "it is being upgraded"
    with pytest.raises(BackendUnavailable, match="it is being upgraded"):
        await growing.backend.claim(LEASE)
    growing.manager.problem = ""
    assert not growing.backend.book.is_shown(LEASE.id)
