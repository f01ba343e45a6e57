"""The application master on a real YARN cluster. An ask is its request for one container."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq

from kit.clusters.hadoop_nodes import GPU, HadoopNodes, Machine, why_not
from kit.clusters.yarn.application_master import YarnMaster, kill, live, running_master
from kit.clusters.yarn.shared_cluster import assert_nothing_left, end_applications
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, RpcError
from roost.launchers.protocol.rpc_client import RpcClient
from roost.placement.model.json_codec import decode
from roost.scheduler.backends.yarn.master.messages import (
    Numbered,
    Probe,
    Probed,
    Resources,
    Update,
    Widen,
)
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

HEARTBEAT_S = 1.0
"""YARN's default interval of a NodeManager's heartbeats. YARN grants containers at a heartbeat."""


@pytest.fixture(scope="module", autouse=True)
def no_other_applications(yarn_cluster: HadoopNodes) -> None:
    end_applications(yarn_cluster)


@pytest.fixture
async def master(yarn_cluster: HadoopNodes, tmp_path: Path) -> AsyncIterator[YarnMaster]:
    async with running_master(yarn_cluster, tmp_path) as master:
        yield master
    assert_nothing_left(yarn_cluster)


async def test_a_container_on_the_chosen_node(master: YarnMaster) -> None:
    status = await master.hello()
    assert status.application_id == master.application
    assert (status.attempt, status.queue.removeprefix("root.")) == (1, "default")  # 3.3 has no path
    assert status.maximum.memory_mb == 8192
    for node in ("nm2", "nm3"):
        ask = await master.ask(node, resources=Resources(memory_mb=300, vcores=2, others={GPU: 2}))
        granted = await master.await_state(ask, "granted")
        assert granted.node == master.cluster.address_of(node)
        assert granted.resources == Resources(memory_mb=384, vcores=2, others={GPU: 2})  # rounded up by 128
        pid = await master.await_pid(ask)
        await master.await_state(ask, "started")
        (process,) = [each for each in master.cluster.container_processes(node) if each.pid == pid]
        assert process.environ()["CONTAINER_ID"] == granted.container_id
        assert master.states(ask) == ["granted", "started"]
        await master.release(ask)
        await master.until(lambda pid=pid: not live([pid]), "the container's process ends")
        await master.await_state(ask, "ended")
    assert await master.containers() == []


async def test_headroom_follows_the_books(master: YarnMaster) -> None:
    before = (await master.hello()).headroom
    assert before is not None
    ask = await master.ask("nm1", resources=Resources(memory_mb=1024, vcores=1))
    await master.await_state(ask, "started")

    async def read_taken_mb() -> int:
        after = (await master.hello()).headroom
        assert after is not None
        return max(0, before.memory_mb - after.memory_mb)

    assert await until(read_taken_mb, "the headroom shrinks", 10 * HEARTBEAT_S) == 1024


async def test_what_the_master_refuses_itself(master: YarnMaster) -> None:
    for resources in (
        Resources(memory_mb=8193, vcores=1),
        Resources(memory_mb=256, vcores=9),
        Resources(memory_mb=256, vcores=1, others={GPU: 5}),
        Resources(memory_mb=256, vcores=1, others={"no-such-resource": 1}),
    ):
        with pytest.raises(RemoteError) as caught:
            await master.ask(resources=resources)
        assert caught.value.kind == "too_large"
        assert caught.value.fields["maximum"]["memory_mb"] == 8192
    with pytest.raises(RemoteError) as caught:
        await master.ask(archive="other")
    assert caught.value.kind == "unknown_archive"
    with pytest.raises(RemoteError) as caught:
        await master.call("update", Update(number=5, lease=""))
    assert caught.value.kind == "unknown_container"
    assert await master.containers() == []


async def test_a_waiting_ask_is_widened(master: YarnMaster) -> None:
    ask = await master.ask(nodes=("127.0.0.99",))
    other = await master.ask(nodes=("127.0.0.99",))
    await asyncio.sleep(2 * HEARTBEAT_S)
    assert master.states(ask) == []
    nodes = tuple(master.cluster.address_of(node) for node in ("nm2", "nm3"))
    await master.call("widen", Widen(number=ask.number, nodes=nodes))
    assert (await master.await_state(ask, "started")).node in nodes
    await master.call("widen", Widen(number=other.number))
    await master.await_state(other, "started")
    await master.call("widen", Widen(number=other.number, nodes=nodes))  # too late: it changes nothing
    await asyncio.sleep(2 * HEARTBEAT_S)
    assert master.report()["runningContainers"] == 3


async def test_grants_that_cross_a_withdrawal_are_given_back(master: YarnMaster) -> None:
    for pause_s in (0.0, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0):
        ask = await master.ask("nm1")
        await asyncio.sleep(pause_s)
        await master.release(ask)
    await master.until(lambda: master.report()["runningContainers"] == 1, "only the master's container runs")
    # The master, and its shell.
    await master.until(lambda: len(master.cluster.container_processes()) <= 2, "the other processes end")

    async def has_none() -> bool:
        return not await master.containers()

    await until(has_none, "the master knows it, too", 10 * HEARTBEAT_S)


async def test_node_managers_are_probed(master: YarnMaster) -> None:
    host = master.cluster.address_of("nm1")
    for port, answers in ((8041, True), (1, False)):
        answer = await master.call("probe", Probe(address=f"{host}:{port}"))
        assert decode(Probed, answer).answers == answers


async def test_an_ask_that_yarn_refuses_harms_no_other(master: YarnMaster) -> None:
    """YARN refuses a heartbeat as a whole. Here one heartbeat has one wrong ask and two good ones."""
    good, bad, late = await asyncio.gather(
        master.ask("nm1"), master.ask(label="no-such-label"), master.ask("nm2")
    )
    ended = await master.await_state(bad, "ended")
    assert ended.exit_status is None
    assert "InvalidLabelResourceRequestException" in ended.diagnostics
    await master.await_state(good, "started")
    await master.await_state(late, "started")


async def test_finish(master: YarnMaster) -> None:
    ask = await master.ask("nm1")
    with pytest.raises(RemoteError) as caught:
        await master.call("finish")
    assert caught.value.kind == "not_empty"
    await master.await_state(ask, "started")
    await master.release(ask)
    await master.await_state(ask, "ended")
    await master.call("finish")
    assert await master.await_end() == "SUCCEEDED"


async def test_an_idle_master_leaves(yarn_cluster: HadoopNodes, tmp_path: Path) -> None:
    async def run_another() -> None:
        """Run a master that has nothing to do until it leaves. A master that is idle for longer has left by then."""
        folder = tmp_path / "another"
        folder.mkdir(exist_ok=True)
        async with running_master(yarn_cluster, folder, idle_exit_s=allow_s(2.0)) as another:
            await another.close()
            assert await another.await_end() == "SUCCEEDED"

    async with running_master(yarn_cluster, tmp_path, idle_exit_s=allow_s(2.0)) as master:
        await master.await_event("idle")
        await run_another()
        assert master.report()["state"] == "RUNNING"  # because this test listens
        ask = await master.ask("nm1")
        await master.await_state(ask, "started")
        await master.close()
        await run_another()
        assert master.report()["state"] == "RUNNING"  # because it has a container
        await master.connect()
        await master.release(ask)
        await master.close()
        assert await master.await_end() == "SUCCEEDED"
    assert_nothing_left(yarn_cluster)


async def test_an_application_that_is_killed(master: YarnMaster) -> None:
    ask = await master.ask("nm1")
    pid = await master.await_pid(ask)
    own = master.process().pid
    kill(master)
    await master.until(lambda: not live([pid, own]), "the processes end", 10.0)


async def test_only_the_service_may_call(master: YarnMaster) -> None:
    address = master.report()["amRPCAddress"]
    public, secret = (key.decode() for key in zmq.curve_keypair())
    client = RpcClient(
        f"tcp://{address}", keys=ClientKeys(server=master.public_key, public=public, secret=secret)
    )
    with pytest.raises(RpcError):
        await client.connect(timeout_s=3.0)
    await client.close()
    with pytest.raises(RemoteError):
        await master.call("no_such_operation")


async def test_ports(yarn_cluster: HadoopNodes, tmp_path: Path) -> None:
    """The master takes the first free one of its ports."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        first, second = taken.getsockname()[1], free_port()
        async with running_master(yarn_cluster, tmp_path, ports=(first, second)) as master:
            assert master.report()["amRPCAddress"].endswith(f":{second}")
    assert_nothing_left(yarn_cluster)


async def test_cost(master: YarnMaster) -> None:
    """A master takes less than 30 MiB, and less than one percent of a core while it is idle."""
    for node in ("nm1", "nm2", "nm3", "nm3"):
        await master.await_state(await master.ask(node), "started")
    process = master.process()
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(6.0)
    assert (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began) < 0.01
    assert process.memory_info().rss < 30 << 20
    assert "WARNING" not in master.log()
    for each in await master.containers():
        await master.call("release", Numbered(number=each.number))


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
