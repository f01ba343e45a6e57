"""The contract about late, missing and wrong news of leases, on a fake backend of each shape."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from kit.fakes.cluster_manager import FakeManager
from roost.launchers.protocol.messages import Launch, Lease
from roost.placement import Node
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend
from roost.scheduler.backends.agent_per_node import backend as agent_per_node
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings
from roost.scheduler.backends.base import Backend, BackendEvent, LeaseReading
from roost.scheduler.backends.lease_book import LeaseBook
from roost.scheduler.config.settings import Settings
from roost.testing import (
    BrokenPromise,
    FakeAgent,
    FakePodCluster,
    LeaseContract,
    backend_context,
    deadlines,
    local_backend,
    open_backend,
    pod_backend,
)
from roost.testing import lease_promises as promises
from roost.testing.contract import Opener
from roost.testing.faults import Faults
from roost.testing.local_faults import LocalFaults
from roost.testing.node_faults import NodeFaults
from roost.testing.pod_faults import PodFaults
from roost.testing.running_service import ME


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent(tmp_path / "agent")
    yield agent
    await agent.close()


class TestOneMachine(LeaseContract):
    @pytest.fixture
    def opener(self, agent: FakeAgent) -> Opener:
        return partial(open_backend, partial(local_backend, agent, Settings()))

    @pytest.fixture
    def faults_of_backend(self) -> Faults:
        return LocalFaults()


class TestAgentsPerNode(LeaseContract):
    @pytest.fixture
    def opener(self, agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
        monkeypatch.setattr(agent_per_node, "_REJOIN_S", 0.01)
        granted = FakeManager(agent).granted

        def create(agents: Agents) -> Backend:
            manager = FakeManager(agent)
            manager.granted = granted  # the cluster outlives its managers' adapters
            context = backend_context(agents, tmp_path)
            return AgentPerNodeBackend(
                "fake", manager, AgentPerNodeSettings().agent_settings(), context, grace_s=300
            )

        return partial(open_backend, create)

    @pytest.fixture
    def faults_of_backend(self) -> Faults:
        return NodeFaults(FakeManager)


@pytest.fixture
async def pod_cluster(tmp_path: Path) -> AsyncIterator[FakePodCluster]:
    cluster = FakePodCluster(tmp_path, [Node(id=name, cpus=4, memory_bytes=8 << 30) for name in "ab"])
    yield cluster
    await cluster.shut_down()


class TestAgentsPerKernel(LeaseContract):
    @pytest.fixture
    def opener(self, pod_cluster: FakePodCluster) -> Opener:
        return partial(open_backend, partial(pod_backend, pod_cluster))

    @pytest.fixture
    def faults_of_backend(self) -> Faults:
        return PodFaults(FakePodCluster)


class Kept(AgentPerKernelBackend):
    """A backend that keeps all promises. The others break one each."""

    def __init__(self, cluster: FakePodCluster, agents: Agents) -> None:
        super().__init__(cluster, agents, linger_s=10.0)

    async def leases(self) -> LeaseReading:
        reading = await super().leases()
        return replace(reading, leases=tuple(self.change(reading)))

    def change(self, reading: LeaseReading) -> Iterable[Lease]:
        return reading.leases


class ListsReleased(Kept):
    """It lists its first released lease for as long as it is open."""

    def __init__(self, cluster: FakePodCluster, agents: Agents) -> None:
        super().__init__(cluster, agents)
        self.released: list[Lease] = []

    async def release(self, lease: Lease) -> None:
        self.released = self.released or [lease]
        await super().release(lease)

    def change(self, reading: LeaseReading) -> Iterable[Lease]:
        return {lease.id: lease for lease in (*reading.leases, *self.released)}.values()


class ForgetsWhileAway(Kept):
    def change(self, reading: LeaseReading) -> Iterable[Lease]:
        return () if reading.unreachable else reading.leases


class LosesReasons(Kept):
    def change(self, reading: LeaseReading) -> Iterable[Lease]:
        return [replace(lease, reason="who knows") for lease in reading.leases]

    async def events(self) -> AsyncIterator[BackendEvent]:
        async for event in super().events():
            yield replace(event, reason="who knows")


class NamesAnotherHolder(Kept):
    def change(self, reading: LeaseReading) -> Iterable[Lease]:
        return [replace(lease, owner=ME) for lease in reading.leases]


class ReleasesStrangers(Kept):
    """It releases the leases that it has not claimed."""

    def __init__(self, cluster: FakePodCluster, agents: Agents) -> None:
        super().__init__(cluster, agents)
        self.own: set[str] = set()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        self.own.add(lease.id)
        return await super().claim(lease, launch)

    async def leases(self) -> LeaseReading:
        for lease in (await super().leases()).leases:
            if lease.id not in self.own:
                await self.release(lease)
        return await super().leases()


class KeepsLateGrants(Kept):
    """It releases no lease whose claim was withdrawn before the answer."""

    def __init__(self, cluster: FakePodCluster, agents: Agents) -> None:
        super().__init__(cluster, agents)
        self.answered: set[str] = set()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        claimed = await super().claim(lease, launch)
        self.answered.add(lease.id)
        return claimed

    async def release(self, lease: Lease) -> None:
        if lease.id in self.answered:
            await super().release(lease)


class BookOfClaims(LeaseBook):
    """A book that has a found lease on the node for which an earlier service has claimed it."""

    claimed: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.own: set[str] = set()

    def want(self, lease: Lease) -> None:
        self.own.add(lease.id)
        self.claimed[lease.id] = lease.node_id
        super().want(lease)

    def show(self, lease: Lease) -> bool:
        is_found = lease.id in self.claimed.keys() - self.own
        return super().show(replace(lease, node_id=self.claimed[lease.id]) if is_found else lease)


class StaysOnNode(Kept):
    """It finds each lease on the node where it was first."""

    def __init__(self, cluster: FakePodCluster, agents: Agents) -> None:
        self.book = BookOfClaims()
        super().__init__(cluster, agents)


BROKEN = [
    (ListsReleased, "test_late_news_of_a_released_lease_change_nothing", promises.STAYS_RELEASED),
    (ForgetsWhileAway, "test_a_lease_that_nobody_shows_for_a_while_stays", promises.BRIDGES_GAPS),
    (ReleasesStrangers, "test_two_services_leave_each_others_leases_alone", promises.LEAVES_OTHERS),
    (
        KeepsLateGrants,
        "test_a_claim_that_is_granted_after_its_withdrawal_is_given_back",
        promises.UNDOES_LATE,
    ),
    (StaysOnNode, "test_a_lease_that_comes_back_on_another_node_counts_there", promises.FOLLOWS_NODE),
    (LosesReasons, "test_a_manager_that_shows_ended_leases_ends_them_once", promises.LOST_ONCE),
    (
        NamesAnotherHolder,
        "test_an_ended_lease_that_nobody_holds_is_dropped_silently",
        promises.LOST_SILENTLY,
    ),
]
"""A broken backend, the test that it fails, and the promise that the test names."""


@pytest.mark.parametrize(("backend", "test", "promise"), BROKEN)
async def test_a_broken_promise_is_named(
    pod_cluster: FakePodCluster,
    monkeypatch: pytest.MonkeyPatch,
    backend: type[Kept],
    test: str,
    promise: str,
) -> None:
    suite = LeaseContract()
    faults = PodFaults(FakePodCluster)
    suite.prepare(sys.executable, faults, monkeypatch)
    suite.held_s = 2.0
    monkeypatch.setattr(deadlines, "_LONGER", 1.0)
    opener = partial(open_backend, partial(backend, pod_cluster))
    with pytest.raises(BrokenPromise) as broken:
        await getattr(suite, test)(opener=opener, faults=faults)
    monkeypatch.undo()
    assert broken.value.promise == promise
    await suite.give_back(partial(open_backend, partial(pod_backend, pod_cluster)))


def test_every_promise_is_tested() -> None:
    named = {promise for _, _, promise in BROKEN}
    assert named == {text for name, text in vars(promises).items() if name.isupper()}
