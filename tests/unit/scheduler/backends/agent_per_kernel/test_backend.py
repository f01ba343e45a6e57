"""Kernels in pods of their own: pending leases, and kernels that a restarted scheduler finds again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeWorld, scheduler_on
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.messages import (
    AgentEvent,
    Launch,
    Lease,
    Owner,
)
from roost.placement import Device, Node, NodeType, Request
from roost.scheduler.backends.agent_per_kernel import Pod, backend
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import reconcile
from roost.scheduler.errors import LaunchError, NoNodeEver, NoNodeNow
from roost.scheduler.messages import Kernel
from roost.testing import BackendContract, FakePodCluster, open_backend, pod_backend
from roost.testing.contract import Opener
from roost.testing.deadlines import until

PULLING = "its image is being pulled"
SOON = Settings(claim_grace_s=0.1)


def node(name: str) -> Node:
    devices = tuple(Device(id=str(number), model="T4") for number in range(2))
    return Node(id=name, cpus=4, memory_bytes=8 << 30, devices=devices)


@pytest.fixture
async def pod_cluster(tmp_path: Path) -> AsyncIterator[FakePodCluster]:
    cluster = FakePodCluster(tmp_path, [node("a")])
    yield cluster
    await cluster.shut_down()


@asynccontextmanager
async def pulling(pod_cluster: FakePodCluster) -> AsyncIterator[tuple[FakeWorld, asyncio.Task[Kernel]]]:
    """Yield a scheduler, and a start whose pod is pending."""
    pod_cluster.pending_reason = PULLING
    async with scheduler_on([], pods=pod_cluster) as w:
        start = w.start("k", cpus=1)
        await w.until(lambda: any(k.waits_for == PULLING for k in w.scheduler.kernels()))
        yield w, start


class TestContract(BackendContract):
    """The contract, with pods that are granted at once."""

    @pytest.fixture
    def opener(self, pod_cluster: FakePodCluster) -> Opener:
        return partial(open_backend, partial(pod_backend, pod_cluster))

    test_a_kernel_ends_with_its_lease = None  # type: ignore[assignment]  # a fake agent starts no kernels


async def test_a_pending_pod_shows_its_reason_and_starts_when_it_is_granted(
    pod_cluster: FakePodCluster,
) -> None:
    async with pulling(pod_cluster) as (w, start):
        kernel = w.kernel("k")
        assert (kernel.state, kernel.position) == ("queued", 1)
        pod_cluster.explain(kernel.lease_id, "its volume is being mounted")
        await w.until(lambda: w.kernel("k").waits_for == "its volume is being mounted")
        pod_cluster.grant_all()
        assert (await start).state == "running"


async def test_a_pending_start_shows_that_the_manager_is_away(
    pod_cluster: FakePodCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_REJOIN_S", (0.01, 0.01))
    async with pulling(pod_cluster) as (w, start):
        pod_cluster.leave("it refuses connections")
        away = "fake_pods is away, its kernels live on: it refuses connections"
        await w.until(lambda: w.kernel("k").waits_for == away)
        findings = [found["what"] for found in await w.scheduler.doctor() if found["level"] == "error"]
        assert findings == [away]
        pod_cluster.away_reason = ""
        await w.until(lambda: w.kernel("k").waits_for == PULLING)
        details = [event.detail for event in w.events if event.kind == "queued"]
        assert details[-2:] == [away, PULLING]
        pod_cluster.grant_all()
        assert (await start).state == "running"


async def test_a_pending_start_delays_no_other(pod_cluster: FakePodCluster) -> None:
    pod_cluster.pending_reason = PULLING
    async with scheduler_on([], pods=pod_cluster) as w:
        first = w.start("first", cpus=1)
        await w.until(lambda: any(k.waits_for == PULLING for k in w.scheduler.kernels()))
        pod_cluster.pending_reason = ""
        assert (await w.start("second", cpus=1)).state == "running"
        pod_cluster.grant_all()
        assert (await first).state == "running"


async def test_a_pending_start_ends_at_its_timeout_with_the_reason(pod_cluster: FakePodCluster) -> None:
    pod_cluster.pending_reason = PULLING
    async with scheduler_on([], pods=pod_cluster) as w:
        with pytest.raises(NoNodeNow, match=f"waited 0.2 s: {PULLING}"):
            await w.start("k", cpus=1, launch_timeout_s=0.2)
    assert not await pod_cluster.pods()


async def test_a_pod_granted_while_no_scheduler_ran_starts_its_kernel(pod_cluster: FakePodCluster) -> None:
    """The pod's agent listens, but its ledger lacks the lease. The next scheduler must not count the lease as held."""
    async with pulling(pod_cluster) as (_, start):
        pass  # the scheduler ends
    with pytest.raises(asyncio.CancelledError):
        await start
    pod_cluster.grant_all()
    (before,) = await pod_cluster.pods()
    async with scheduler_on([], pods=pod_cluster) as w:
        assert (await w.start("k", cpus=1)).state == "running"
        (after,) = await pod_cluster.pods()
        assert after.address == before.address


async def test_a_pending_start_goes_on_after_the_scheduler_is_killed(pod_cluster: FakePodCluster) -> None:
    """The client repeats its call, and the next scheduler waits for the same pod."""
    async with pulling(pod_cluster) as (w, start):
        (before,) = await pod_cluster.pods()
        asked_at = w.kernel("k").created_at
    with pytest.raises(asyncio.CancelledError):
        await start
    async with scheduler_on([], pods=pod_cluster) as w:
        assert w.kernel("k").created_at == asked_at
        assert (w.kernel("k").state, w.kernel("k").waits_for) == ("queued", PULLING)
        start = w.start("k", cpus=1)
        await w.told("queued")
        pod_cluster.grant_all()
        assert (await start).lease_id == before.lease.id
        assert len(await pod_cluster.pods()) == 1


async def test_the_agent_of_a_found_pod_knows_its_owner(
    pod_cluster: FakePodCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod keeps the first owner. Until the agent answers, the first owner's end must not end the kernel."""
    monkeypatch.setattr(reconcile, "RETRY_S", 0.05)
    monkeypatch.setattr(backend, "_ANSWERS_S", 0.05)
    first, second = (Owner(user="ada", pid=pid, process_started_at=1.0) for pid in (1, os.getpid()))
    second = replace(second, process_started_at=start_time(os.getpid()))
    settings = Settings(owner_grace_s=0.05)
    async with scheduler_on([], settings, pods=pod_cluster) as w:
        await w.start("k", cpus=1, owner=replace(first, can_adopt=True))
        await w.scheduler.adopt("k", second)
    answers = pod_cluster.agents["roost:k:s/1"].hold("reserve")
    async with scheduler_on([], settings, pods=pod_cluster) as w:
        assert (w.kernel("k").owner.user, w.kernel("k").owner.pid) == ("ada", 0)
        await asyncio.sleep(0.2)
        assert w.kernel("k").state == "running"
        answers.set()
        await w.until(lambda: w.kernel("k").owner == second)
        assert w.kernel("k").state == "running"


async def test_a_pending_pod_whose_start_is_not_repeated_is_deleted(pod_cluster: FakePodCluster) -> None:
    async with pulling(pod_cluster) as (_, start):
        pass  # the scheduler ends
    with pytest.raises(asyncio.CancelledError):
        await start
    async with scheduler_on([], SOON, pods=pod_cluster) as w:
        await w.told("released")
        assert w.kernel("k").reason == "its start was not repeated"
    assert not await pod_cluster.pods()


async def test_a_pending_pod_that_is_deleted_by_hand_is_placed_again(pod_cluster: FakePodCluster) -> None:
    async with pulling(pod_cluster) as (w, start):
        pod_cluster.pending_reason = ""
        await pod_cluster.end("roost:k:s/1", "it was deleted by hand")
        assert (await start).state == "running"
        assert w.count("conflict", "k") == 1


async def test_a_pod_that_can_never_start_ends_the_start_with_the_reason(pod_cluster: FakePodCluster) -> None:
    async with pulling(pod_cluster) as (_, start):
        await pod_cluster.end("roost:k:s/1", "there is no image jupyter/nothing", is_final=True)
        with pytest.raises(LaunchError, match="there is no image jupyter/nothing"):
            await start


async def test_an_owner_is_warned_before_a_pod_ends_and_reads_the_reason_afterwards(
    pod_cluster: FakePodCluster,
) -> None:
    async with scheduler_on([], pods=pod_cluster) as w:
        await w.start("k", cpus=1)
        pod_cluster.warn("roost:k:s/1", "it is preempted")
        await w.told("warned", "k")
        assert [event.detail for event in w.events if event.kind == "warned"] == ["it is preempted"]
        assert w.kernel("k").state == "running"
        agent = pod_cluster.agents["roost:k:s/1"]
        agent.report(AgentEvent(kind="lost", lease_id="roost:k:s/1", reason="its pod was ended"))
        agent.give_back("roost:k:s/1")
        await w.told("released")
        assert w.kernel("k").reason == "its lease is lost: it is preempted"


async def test_the_exit_of_a_pod_that_is_ended_has_the_reason_of_its_manager(
    pod_cluster: FakePodCluster,
) -> None:
    """The agent reports the end before the manager does. The published reason is still the manager's, if it has one."""
    async with scheduler_on([], pods=pod_cluster) as w:
        for name, reason in (("one", "it was evicted"), ("two", "")):
            await w.start(name, cpus=1)
            pod_cluster.end_reasons[f"roost:{name}:s/1"] = reason
            agent = pod_cluster.agents[f"roost:{name}:s/1"]
            agent.report(AgentEvent(kind="lost", lease_id=f"roost:{name}:s/1", reason="its pod was ended"))
            agent.end(name, -15)
            await w.told("exited", name)
            assert w.kernel(name).reason == f"its lease is lost: {reason or 'its pod was ended'}"
            assert w.kernel(name).exit_code == -15


@pytest.mark.parametrize("unit", ["", "job"])
async def test_a_pod_that_has_vanished_is_called_by_its_managers_word(
    pod_cluster: FakePodCluster, unit: str
) -> None:
    if unit:
        pod_cluster.unit = unit
    async with scheduler_on([], pods=pod_cluster) as w:
        await w.start("k", cpus=1)
        await pod_cluster.forget("roost:k:s/1")
        w.scheduler.reconciler.soon()
        await w.told("released")
        assert w.kernel("k").reason == f"its lease is lost: its {unit or 'pod'} is gone"


async def test_a_lease_that_its_agent_releases_takes_its_pod_along(pod_cluster: FakePodCluster) -> None:
    async with scheduler_on([], pods=pod_cluster) as w:
        await w.start("k", cpus=1)
        pod_cluster.agents["roost:k:s/1"].end("k", 5)
        pod_cluster.agents["roost:k:s/1"].give_back("roost:k:s/1")
        await w.told("released")
        assert w.kernel("k").exit_code == 5
        await w.until_not(pod_cluster.pods)


async def test_a_quota_of_the_cluster_is_waited_for_without_trying_every_node(
    pod_cluster: FakePodCluster,
) -> None:
    pod_cluster.quota_reason = "the quota is used up"
    async with scheduler_on([], pods=pod_cluster) as w:
        start = w.start("k", cpus=1)
        await w.until(lambda: any(k.waits_for == "the quota is used up" for k in w.scheduler.kernels()))
        pod_cluster.quota_reason = ""
        assert (await start).state == "running"
        assert sum(event.kind == "conflict" for event in w.events) == 1


async def test_a_request_that_no_node_can_take_waits_for_a_node_that_the_cluster_adds(tmp_path: Path) -> None:
    cluster = FakePodCluster(tmp_path, [node("a")], adds_nodes=True)
    async with scheduler_on([], pods=cluster) as w:
        start = w.start("k", cpus=16)
        await w.until(lambda: any(k.waits_for == "no node has room yet" for k in w.scheduler.kernels()))
        cluster.add_node(replace(node("big"), cpus=32))
        assert (await start).node_id == "big"
        await w.scheduler.stop("k", 0)
    await cluster.shut_down()


async def test_types_of_nodes_say_at_once_that_no_node_will_come(tmp_path: Path) -> None:
    small = NodeType(node=replace(node("small"), cpus=8, labels={"pool": "small"}), limit=2)
    cluster = FakePodCluster(tmp_path, [node("a")], adds_nodes=True, node_types=(small,))
    async with scheduler_on([], pods=cluster) as w:
        with pytest.raises(NoNodeEver, match=r"could hold it \(small: needs 16 CPUs, has 8\)"):
            await w.start("k", cpus=16)
        decision = await w.scheduler.explain(Request(cpus=8), Owner(user="ada"))
        assert "a node of type small can be started for it (0 of 2 run)" in decision["reason"]
        assert not decision["is_never"]
        assert await cluster.pods() == [], "an explanation asks for no node"
    await cluster.shut_down()


async def test_a_start_waits_while_all_nodes_of_its_type_run(tmp_path: Path) -> None:
    big = NodeType(node=replace(node("big"), cpus=8, labels={"pool": "big"}), limit=1)
    first = replace(node("b1"), cpus=8, labels={"pool": "big"})
    cluster = FakePodCluster(tmp_path, [node("a"), first], adds_nodes=True, node_types=(big,))
    async with scheduler_on([], pods=cluster) as w:
        await w.start("holder", cpus=8)
        start = w.start("k", cpus=8)
        full = "all of the 1 node of type big that the cluster may have run already"
        await w.until(lambda: any(full in k.waits_for for k in w.scheduler.kernels()))
        assert len(await cluster.pods()) == 1, "it waits in roost's queue"
        await w.scheduler.stop("holder", 0)
        assert (await start).node_id == "b1"
        await w.scheduler.stop("k", 0)
    await cluster.shut_down()


class SlowCluster(FakePodCluster):
    """A cluster whose pods are created once `may_create` is set. It notes its calls."""

    def __init__(self, folder: Path, nodes: Sequence[Node]) -> None:
        super().__init__(folder, nodes)
        self.calls: list[str] = []
        self.began = asyncio.Event()
        self.may_create = asyncio.Event()

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        self.calls.append("create")
        assert lease.id in self.creating
        self.began.set()
        await self.may_create.wait()
        return await super().create(lease, launch)

    async def delete(self, lease_id: str) -> None:
        self.calls.append("delete")
        assert lease_id not in self.creating
        await super().delete(lease_id)


async def test_a_backend_closes_once_its_creations_have_ended(tmp_path: Path) -> None:
    cluster = SlowCluster(tmp_path, [node("a")])
    lease = Lease(id="l", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1), node_id="a")
    async with open_backend(partial(pod_backend, cluster)) as (backend, _):
        claiming = asyncio.ensure_future(backend.claim(lease))
        await cluster.began.wait()
        closing = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        cluster.may_create.set()
        assert (await claiming).id == "l"
        await closing
    await cluster.shut_down()


async def test_a_pod_that_ends_while_all_are_read_is_not_shown_again(
    pod_cluster: FakePodCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it is older than its end. No later event would say that it has ended."""
    lease = Lease(id="l", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1), node_id="a")
    opener = partial(open_backend, partial(pod_backend, pod_cluster))
    async with opener() as (theirs, _), opener() as (mine, _):
        await theirs.claim(lease)
        assert [found.id for found in (await mine.leases()).leases] == ["l"]
        pods, has_read, goes_on = pod_cluster.pods, asyncio.Event(), asyncio.Event()

        async def read_slowly() -> Sequence[Pod]:
            found = await pods()
            has_read.set()
            await goes_on.wait()
            return found

        monkeypatch.setattr(pod_cluster, "pods", read_slowly)
        reading = asyncio.ensure_future(mine.leases())
        await has_read.wait()
        monkeypatch.setattr(pod_cluster, "pods", pods)
        await pod_cluster.delete(lease.id)  # its agent says nothing

        async def is_free() -> bool:
            return not (await mine.snapshot()).node("a").cpus_promised

        await until(is_free, "the pod takes no room")
        goes_on.set()
        assert [found.state for found in (await reading).leases] == ["lost"]
        assert (await mine.snapshot()).node("a").cpus_promised == 0


async def test_a_pod_that_is_gone_before_its_deletion_returns_takes_no_room(
    pod_cluster: FakePodCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever places a kernel meanwhile must not fix the room of the pod in the snapshot."""
    async with scheduler_on([], pods=pod_cluster) as w:
        kernel = await w.start("k", cpus=1)
        delete, is_gone, goes_on = pod_cluster.delete, asyncio.Event(), asyncio.Event()

        async def delete_slowly(lease_id: str) -> None:
            await delete(lease_id)
            is_gone.set()
            await goes_on.wait()

        monkeypatch.setattr(pod_cluster, "delete", delete_slowly)
        stopping = asyncio.ensure_future(w.scheduler.stop("k", 0))
        await is_gone.wait()
        for _ in range(20):  # the change has arrived, and a snapshot was taken after it
            await asyncio.sleep(0)
            await w.backend.snapshot()
        goes_on.set()
        await stopping
        assert (await w.backend.snapshot()).node(kernel.node_id).cpus_promised == 0
