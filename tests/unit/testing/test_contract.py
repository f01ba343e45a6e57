"""The contract suite names the promise that a backend breaks, and gives back the leases of a test that fails."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.protocol.messages import AgentAddress, Launch, Lease, Owner
from roost.placement import Device, Node, Request, Snapshot
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend, PodGrowth
from roost.scheduler.backends.base import BackendEvent, LeaseReading
from roost.scheduler.errors import LeaseConflict
from roost.testing import BackendContract, FakePodCluster, contract, deadlines, open_backend, promises
from roost.testing.contract_steps import OWNER, name_kernel, name_lease
from roost.testing.promises import BrokenPromise

COUNTS = "test_a_lease_shows_in_the_snapshot_and_its_release_undoes_it"
REPEATS = "test_claims_and_releases_may_be_repeated"
GRANTS = "test_a_slice_is_granted_once_and_refusals_are_quick"
FINDS = "test_leases_are_found_again_by_another_process"
CANCELS = "test_a_pending_lease_has_a_reason_and_can_be_cancelled"
GOES_ON = "test_a_pending_lease_goes_on_in_another_process"
TRANSFERS = "test_a_lease_has_the_owner_that_its_agent_knows"
OTHERS = "test_the_lease_of_another_scheduler_shows_after_an_event"
AGENTS = "test_each_lease_has_an_agent_that_knows_it"
ENDS = "test_a_kernel_ends_with_its_lease"
EVENTS = "test_the_events_end_with_the_backend"


class Cluster(FakePodCluster):
    """A cluster with one node, and what the broken backends on it remember."""

    def __init__(self, folder: Path, *, gpus: int = 2) -> None:
        devices = tuple(Device(id=str(number), model="T4") for number in range(gpus))
        super().__init__(folder, [Node(id="a", cpus=4, memory_bytes=8 << 30, devices=devices)])
        self.folder = folder
        self.noted: list[Any] = []
        self.now = 0.0


class Kept(AgentPerKernelBackend):
    """A backend that keeps all promises. The others break one each."""

    def __init__(self, cluster: Cluster, agents: Agents) -> None:
        super().__init__(cluster, agents, linger_s=10.0)
        self.cluster = cluster


class ClaimRaises(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        raise KeyError(lease.id)


class IdIsFolder(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        (self.cluster.folder / lease.id).mkdir(exist_ok=True)
        return await super().claim(lease)


class ClaimChangesOwner(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        return replace(await super().claim(lease), owner=Owner(user="root"))


class AnswersDiffer(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        self.cluster.noted.append(lease)
        return replace(await super().claim(lease), asked_at=float(len(self.cluster.noted)))


class RefusesAll(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        raise LeaseConflict("not today")


class QueuesOnNode(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        try:
            return await super().claim(lease)
        except LeaseConflict:
            return replace(lease, state="pending", reason="it waits for this node")


class WaitsForRoom(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        while True:
            try:
                return await super().claim(lease)
            except LeaseConflict:
                await asyncio.sleep(0.05)


class RefusesLate(Kept):
    """It refuses a claim 6 s after two others of the same slice, and one earlier lease, were held."""

    grant_s = 0.0

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        try:
            claimed = await super().claim(lease)
        except LeaseConflict:
            while len(self.cluster.noted) < 3:  # noqa: ASYNC110 - the test knows no event
                await asyncio.sleep(0.01)
            self.cluster.now += 6.0
            raise
        if claimed.state == "held" and lease.id not in self.cluster.noted:
            self.cluster.now += self.grant_s
            self.cluster.noted.append(lease.id)
        return claimed


class IsBusy(RefusesLate):
    """Its grants take time too, as on a busy machine."""

    grant_s = 3.0


class RefusedStays(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        try:
            return await super().claim(lease)
        except LeaseConflict:
            self.cluster.noted.append(lease)
            raise

    async def leases(self) -> LeaseReading:
        return LeaseReading(leases=(*(await super().leases()).leases, *self.cluster.noted))


class HasNoQueue(Kept):
    def __init__(self, cluster: Cluster, agents: Agents) -> None:
        super().__init__(cluster, agents)
        self.growth = PodGrowth()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        if not lease.node_id:
            raise LeaseConflict("on which node?")
        return await super().claim(lease)


class HasNoReason(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        return replace(await super().claim(lease), state="pending", reason="")


class StaysPending(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        return replace(await super().claim(lease), state="pending", reason="its image is being pulled")


class BecomesLost(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        return replace(await super().claim(lease), state="lost", reason="it was evicted")


class CountsNothing(Kept):
    async def snapshot(self) -> Snapshot:
        return Snapshot.of(await self.cluster.nodes())


class CountsTwice(Kept):
    async def snapshot(self) -> Snapshot:
        snapshot = await super().snapshot()
        node = snapshot.node("a")
        return snapshot.apply([replace(node, cpus_promised=2 * node.cpus_promised)])


class CountsItsOwn(Kept):
    """It counts the leases that this process has claimed, and no others."""

    async def snapshot(self) -> Snapshot:
        (node,) = await self.cluster.nodes()
        for lease in self.own.values():
            node = node.with_kernel(lease.request, lease.device_ids)
        return Snapshot.of([node])

    def __init__(self, cluster: Cluster, agents: Agents) -> None:
        super().__init__(cluster, agents)
        self.own: dict[str, Lease] = {}

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        self.own[lease.id] = await super().claim(lease)
        return self.own[lease.id]

    async def release(self, lease: Lease) -> None:
        self.own.pop(lease.id, None)
        await super().release(lease)


class KeepsReleased(Kept):
    async def release(self, lease: Lease) -> None:
        return


class ReleasesOnce(Kept):
    async def release(self, lease: Lease) -> None:
        if lease.id in self.cluster.noted:
            raise KeyError(lease.id)
        self.cluster.noted.append(lease.id)
        await super().release(lease)


class UsesIdsUp(Kept):
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        if lease.id in self.cluster.noted:
            raise LeaseConflict("a job of this name has ended a moment ago")
        return await super().claim(lease)

    async def release(self, lease: Lease) -> None:
        self.cluster.noted.append(lease.id)
        await super().release(lease)


class ListsTwice(Kept):
    async def leases(self) -> LeaseReading:
        return LeaseReading(leases=2 * (await super().leases()).leases)


class ListsNothing(Kept):
    async def leases(self) -> LeaseReading:
        return LeaseReading(leases=())


class KeepsTheFirstOwner(Kept):
    async def leases(self) -> LeaseReading:
        reading = await super().leases()
        return replace(reading, leases=tuple(replace(lease, owner=OWNER) for lease in reading.leases))

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        return replace(await super().claim(lease), owner=OWNER)


class AgentIsAway(Kept):
    async def agent(self, lease: Lease) -> AgentAddress:
        raise KeyError(lease.id)


class AgentIsAnother(Kept):
    async def agent(self, lease: Lease) -> AgentAddress:
        return await super().agent(replace(lease, id=name_lease(name_kernel("k"))))


class EventsEndEarly(Kept):
    async def events(self) -> AsyncIterator[BackendEvent]:
        return
        yield BackendEvent(kind="nodes")


class EventsGoOn(Kept):
    async def events(self) -> AsyncIterator[BackendEvent]:
        await asyncio.Event().wait()
        yield BackendEvent(kind="nodes")


class ClosesOnce(Kept):
    async def close(self) -> None:
        if self.cluster.noted:
            raise RuntimeError("it is closed")
        self.cluster.noted.append(self)
        await super().close()


class Contract(BackendContract):
    """The suite, as its users have it."""


AT_ONCE = [
    (ClaimRaises, CANCELS, promises.ANSWERS),
    (IdIsFolder, CANCELS, promises.ANSWERS),
    (BecomesLost, CANCELS, promises.ANSWERS),
    (ClaimChangesOwner, CANCELS, promises.KEEPS_LEASE),
    (AnswersDiffer, REPEATS, promises.SAME_ANSWER),
    (RefusesAll, COUNTS, promises.GRANTS_ROOM),
    (QueuesOnNode, GRANTS, promises.GRANTS_ONCE),
    (RefusesLate, GRANTS, promises.REFUSES_SOON),
    (RefusedStays, GRANTS, promises.REFUSES_ALL),
    (HasNoQueue, GRANTS, promises.QUEUES),
    (HasNoReason, CANCELS, promises.HAS_REASON),
    (HasNoReason, COUNTS, promises.HAS_REASON),
    (CountsNothing, COUNTS, promises.COUNTS_LEASE),
    (CountsTwice, COUNTS, promises.COUNTS_LEASE),
    (ReleasesOnce, REPEATS, promises.RELEASES),
    (UsesIdsUp, REPEATS, promises.CLAIMS_AGAIN),
    (KeepsReleased, REPEATS, promises.LISTS),
    (KeepsReleased, CANCELS, promises.LISTS),
    (ListsTwice, REPEATS, promises.LISTS),
    (KeepsTheFirstOwner, TRANSFERS, promises.TRANSFERS),
    (AgentIsAway, AGENTS, promises.HAS_AGENT),
    (AgentIsAnother, AGENTS, promises.HAS_AGENT),
    (EventsEndEarly, COUNTS, promises.ENDS_EVENTS),
    (ClosesOnce, EVENTS, promises.CLOSES),
]
"""A broken backend, the test that it fails, and the promise that the test names."""
AFTER_A_WHILE = [
    (WaitsForRoom, GRANTS, promises.GRANTS_ONCE),
    (StaysPending, COUNTS, promises.BECOMES_HELD),
    (CountsItsOwn, OTHERS, promises.COUNTS_OTHERS),
    (KeepsReleased, COUNTS, promises.COUNTS_NO_MORE),
    (EventsGoOn, EVENTS, promises.ENDS_EVENTS),
    (ListsNothing, FINDS, promises.LISTS),
    (ListsNothing, GOES_ON, promises.LISTS),
]
"""The same. These tests wait for `held_s`."""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    await cluster.shut_down()


async def run(test: str, backend: type[Kept], cluster: Cluster, *, held_s: float = 60.0) -> str:
    """Run one test of the contract without pytest. Return the promise that it finds broken, and its leases' end.

    Empty if the test passes.
    """
    suite = Contract()
    suite.held_s = held_s
    suite.clock = lambda: cluster.now
    given = {
        "opener": partial(open_backend, partial(backend, cluster)),
        "scarce": lambda amount, **fields: Request(gpus=amount, **fields),
        "record_property": lambda name, value: None,
        "kernel_python": sys.executable,
    }
    method = getattr(suite, test)
    try:
        await method(**{name: given[name] for name in inspect.signature(method).parameters})
    except BrokenPromise as broken:
        await suite.give_back(partial(open_backend, partial(Kept, cluster)))
        return broken.promise
    return ""


@pytest.mark.parametrize(("backend", "test", "promise"), AT_ONCE)
async def test_a_broken_promise_is_named(
    cluster: Cluster, backend: type[Kept], test: str, promise: str
) -> None:
    assert await run(test, backend, cluster) == promise
    assert backend is KeepsReleased or not await cluster.pods(), "the leases of the test are released"


async def test_promises_about_the_future_are_named_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These tests wait for something that never comes, all at once. The last cluster has no room."""
    monkeypatch.setattr(deadlines, "_LONGER", 1.0)
    broken = [*AFTER_A_WHILE, (Kept, COUNTS, promises.SHOWS_ROOM)]
    clusters = [Cluster(tmp_path / str(number)) for number in range(len(AFTER_A_WHILE))]
    clusters.append(Cluster(tmp_path / "full", gpus=0))
    runs = [
        run(test, backend, cluster, held_s=2.0)
        for (backend, test, _), cluster in zip(broken, clusters, strict=True)
    ]
    assert await asyncio.gather(*runs) == [promise for _, _, promise in broken]
    for (backend, _, _), cluster in zip(broken, clusters, strict=True):
        assert backend is KeepsReleased or not await cluster.pods(), "the leases of the test are released"
        await cluster.shut_down()


@pytest.mark.parametrize(
    ("is_open", "promise"), [(False, promises.STARTS_KERNEL), (True, promises.ENDS_KERNEL)]
)
async def test_a_kernel_that_does_not_listen_or_end_is_named(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_open: bool, promise: str
) -> None:
    async def answer(address: tuple[str, int]) -> bool:
        return is_open

    monkeypatch.setattr(contract, "is_open", answer)
    monkeypatch.setattr(deadlines, "_LONGER", 1.0)
    assert await run(ENDS, Kept, cluster, held_s=2.0) == promise
    assert not await cluster.pods()


async def test_refusals_may_take_long_where_grants_do(cluster: Cluster) -> None:
    assert await run(GRANTS, IsBusy, cluster) == ""
    assert cluster.now > BackendContract.refused_s


def test_the_text_names_the_promise_and_what_the_backend_did() -> None:
    broken = BrokenPromise(promises.LISTS, "it lists nothing")
    assert str(broken) == f"broken promise: {promises.LISTS}.\nfound: it lists nothing"


def test_every_promise_is_tested() -> None:
    named = {promise for _, _, promise in (*AT_ONCE, *AFTER_A_WHILE)}
    named |= {promises.SHOWS_ROOM, promises.STARTS_KERNEL, promises.ENDS_KERNEL}
    assert named == {text for name, text in vars(promises).items() if name.isupper()}


async def test_ids_are_as_long_as_real_ones() -> None:
    lease_id = name_lease(name_kernel("k"))
    assert re.fullmatch(r"roost:[0-9a-f-]{36}:[a-z-]+/[0-9a-f]{32}", lease_id)
    assert len(lease_id) >= 105
