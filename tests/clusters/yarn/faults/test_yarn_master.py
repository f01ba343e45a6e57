"""The application master while masters, ResourceManagers and NodeManagers die, and with signed or encrypted RPC."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kit.clusters.hadoop_nodes import HadoopNodes, Machine, why_not
from kit.clusters.yarn.application_master import YarnMaster, live, running_master
from roost.scheduler.backends.yarn.master.messages import Container, Resources
from roost.testing.deadlines import allow_s

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

EXPIRY_S = 10.0
SETTINGS = {
    "yarn.nm.liveness-monitor.expiry-interval-ms": int(EXPIRY_S * 1000),
    "yarn.am.liveness-monitor.expiry-interval-ms": 20_000,
    "yarn.resourcemanager.am.max-attempts": 4,
    "yarn.resourcemanager.monitor.capacity.preemption.monitoring_interval": 1000,
    "yarn.resourcemanager.monitor.capacity.preemption.max_wait_before_kill": 3000,
    "yarn.resourcemanager.monitor.capacity.preemption.total_preemption_per_round": 1.0,
}


@pytest.fixture(scope="module")
def hadoop_nodes() -> Iterator[HadoopNodes]:
    with HadoopNodes(Machine(), Machine(), settings=SETTINGS) as cluster:
        yield cluster


@pytest.fixture
async def master(hadoop_nodes: HadoopNodes, tmp_path: Path) -> AsyncIterator[YarnMaster]:
    async with running_master(hadoop_nodes, tmp_path, grace_s=5.0) as master:
        yield master


def other_node(master: YarnMaster) -> str:
    """Return a node without the master. The master survives the end of this node."""
    host = master.report()["amHostHttpAddress"].partition(":")[0]
    return next(node for node in master.cluster.machines if master.cluster.address_of(node) != host)


async def ends(master: YarnMaster, number: int) -> Container:
    """Wait until a container has ended, and return it."""
    found: list[Container] = []

    def has_ended() -> bool:
        found[:] = [
            event.container
            for event in master.events
            if event.container is not None
            and event.container.number == number
            and event.container.state == "ended"
        ]
        return bool(found)

    await master.until(has_ended, "the container has ended")
    return found[0]


async def test_the_master_is_killed(master: YarnMaster) -> None:
    """The master's next attempt knows the containers by their numbers and can stop them."""
    asks = [await master.ask("nm1"), await master.ask("nm2")]
    pids = [await master.await_pid(ask) for ask in asks]
    await master.await_known(*asks)
    for attempt in (2, 3):
        master.process().kill()
        await master.connect(attempt=attempt)
        found = {each.number: each for each in await master.containers()}
        assert set(found) == {ask.number for ask in asks}
        assert {each.lease for each in found.values()} == {""}
        assert {each.state for each in found.values()} == {"started"}
        assert live(pids) == pids
    repeated = await master.ask("nm1", number=asks[0].number)
    assert len(await master.containers()) == 2
    await master.release(repeated)
    await master.until(lambda: live(pids) == pids[1:], "the first container ends")
    await master.release(asks[1])
    await master.until(lambda: not live(pids), "the other container ends")
    await ends(master, asks[1].number)
    another = await master.ask("nm2")
    await master.await_state(another, "started")


async def test_the_resource_manager_is_killed(master: YarnMaster) -> None:
    """Containers live on, waiting asks are granted later, and containers that were released meanwhile end."""
    kept, released = await master.ask("nm1"), await master.ask("nm2")
    pids = [await master.await_pid(ask) for ask in (kept, released)]
    large = await master.ask("nm2", resources=Resources(memory_mb=8000, vcores=1))  # too large, as yet
    await master.await_known(kept, released)
    master.cluster.kill("rm1")
    await master.await_event("away")
    assert (await master.hello()).is_away
    late = await master.ask("nm1")
    withdrawn = await master.ask("nm1")
    await master.release(withdrawn)
    await master.release(released)
    await master.until(lambda: live(pids) == pids[:1], "the released container ends")
    master.cluster.start("rm1")
    await master.await_event("back")
    assert (await master.await_state(late, "started")).node == master.cluster.address_of("nm1")
    await master.await_state(large, "started")
    await ends(master, released.number)
    assert master.states(withdrawn) == []
    assert live(pids) == pids[:1]
    assert master.states(kept) == ["granted", "started"]
    numbers = {each.number for each in await master.containers()}
    assert numbers == {kept.number, late.number, large.number}
    await master.release(kept)
    await master.until(lambda: not live(pids), "the containers end")
    assert (await master.hello()).attempt == 1


@pytest.mark.long
async def test_a_node_is_lost(master: YarnMaster) -> None:
    node = other_node(master)
    ask = await master.ask(node)
    pid = await master.await_pid(ask)
    await master.await_known(ask)
    master.cluster.kill(node)
    ended = await ends(master, ask.number)
    assert ended.exit_status == -100
    event = await master.await_event("nodes")
    assert event.text == f"{master.cluster.address_of(node)} lost"
    waiting = await master.ask(node)
    master.cluster.start(node)
    # The NodeManager ends containers that YARN has lost.
    await master.until(lambda: not live([pid]), "the lost container ends")
    await master.await_state(waiting, "started")


async def test_a_node_manager_is_paused(master: YarnMaster) -> None:
    """A release does not wait for a NodeManager that does not answer."""
    node = other_node(master)
    ask = await master.ask(node)
    pid = await master.await_pid(ask)
    await master.await_known(ask)
    master.cluster.pause(node)
    try:
        await asyncio.wait_for(master.release(ask), allow_s(2))
        await ends(master, ask.number)
    finally:
        master.cluster.resume(node)
    await master.until(lambda: not live([pid]), "the released container ends")
    master.cluster.await_node(node)


@pytest.mark.long
async def test_preemption(master: YarnMaster, tmp_path: Path) -> None:
    """The queue `batch` has all resources. YARN warns, then takes back the other queue's share.

    Containers of one core leave no gaps. YARN does not preempt for a request that finds too little on each node, but
    enough on all nodes together.
    """
    (tmp_path / "batch").mkdir()
    async with running_master(master.cluster, tmp_path / "batch", queue="batch") as batch:
        one = Resources(memory_mb=128, vcores=1)
        free = sum(machine.vcores for machine in master.cluster.machines.values()) - 2  # one for each master
        asks = [await batch.ask(resources=one) for _ in range(free)]
        for ask in asks:
            await batch.await_state(ask, "started")
        await batch.await_known(*asks)
        wanted = [await master.ask(resources=one) for _ in range(2)]
        warning = await batch.await_event("preempt")
        assert warning.text in ("contract", "strict")
        assert warning.container is not None
        assert warning.container.number in {ask.number for ask in asks}
        for ask in wanted:
            await master.await_state(ask, "started")
        numbers = {ask.number for ask in asks}

        def find_ended() -> list[Container]:
            found = (event.container for event in batch.events if event.container is not None)
            return [each for each in found if each.state == "ended" and each.number in numbers]

        # The ResourceManager reports it later to another master.
        await batch.until(lambda: len(find_ended()) >= len(wanted), "the containers end")
        assert {each.exit_status for each in find_ended()} == {-102}


@pytest.mark.long
async def test_another_cluster_takes_the_address(tmp_path: Path) -> None:
    """A master whose token nobody accepts any more ends itself after its grace."""
    with HadoopNodes(Machine(), settings=SETTINGS) as cluster:
        async with running_master(cluster, tmp_path, grace_s=3.0) as master:
            process = master.process()
            cluster.kill("nm1")  # else it would end its containers
            cluster.kill("rm1")
            shutil.rmtree(cluster.folder / "store")
            cluster.start("rm1")
            await master.until(lambda: not live([process.pid]), "the attempt ends")
            assert "this attempt ends" in master.log()


@pytest.mark.long
async def test_the_token_is_renewed(tmp_path: Path) -> None:
    """The ResourceManager rolls the key of its tokens. A later connection needs the new token.

    YARN wants at least three expiry intervals between two keys. A busy machine can miss heartbeats for 5 s.
    """
    rolling = {
        "yarn.am.liveness-monitor.expiry-interval-ms": 10_000,
        "yarn.resourcemanager.am-rm-tokens.master-key-rolling-interval-secs": 31,
    }
    with HadoopNodes(Machine(), settings=rolling) as cluster:
        async with running_master(cluster, tmp_path) as master:
            await master.until(
                lambda: master.log().count("renewed the master's token") >= 2,
                "the token is renewed twice",
                180.0,
            )
            await master.await_state(await master.ask(), "started")
            assert not [event for event in master.events if event.kind == "away"]
            assert "WARNING" not in master.log()


@pytest.mark.long
async def test_the_standby_takes_over(tmp_path: Path) -> None:
    with HadoopNodes(Machine(), settings=SETTINGS, has_standby=True) as cluster:
        async with running_master(cluster, tmp_path) as master:
            first = await master.ask()
            pid = await master.await_pid(first)
            await master.await_known(first)
            cluster.kill("rm1")
            cluster.fail_over("rm2")
            second = await master.ask()
            await master.await_state(second, "started")
            assert {each.number for each in await master.containers()} == {first.number, second.number}
            assert live([pid])
            assert (await master.hello()).attempt == 1


@pytest.mark.parametrize("protection", ["integrity", "privacy"])
async def test_sealed_calls(protection: str, tmp_path: Path) -> None:
    with HadoopNodes(Machine(), settings={"hadoop.rpc.protection": protection}) as cluster:
        async with running_master(cluster, tmp_path) as master:
            asks = [await master.ask() for _ in range(3)]
            pids = [await master.await_pid(ask) for ask in asks]
            for ask in asks:
                await master.release(ask)
            await master.until(lambda: not live(pids), "the containers end")
            assert "WARNING" not in master.log()
