"""roost's agent as the first process of a container of a real YARN cluster."""

from __future__ import annotations

import base64
import os
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zmq

from kit.clusters.hadoop_nodes import GPU, HadoopNodes, why_not
from kit.clusters.yarn.application_master import YarnMaster, live, running_master
from kit.clusters.yarn.shared_cluster import assert_nothing_left, end_applications
from kit.machine.container_agent import LEASE, PARENT_KERNEL, a_launch, connect, find_children
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Assignment, Launch, Reserve
from roost.launchers.protocol.rpc import ClientKeys, ServerKeys
from roost.placement import Request
from roost.scheduler.backends.node_archive import dump_start, pack
from roost.scheduler.backends.yarn.master.messages import Archive, Ask, Resources
from roost.testing.clusters.free_ports import free_port

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

COMMAND = (
    f'exec {shlex.quote(sys.executable)} "$HADOOP_TOKEN_FILE_LOCATION" agent '
    "1><LOG_DIR>/stdout 2><LOG_DIR>/stderr"
)


@pytest.fixture(scope="module", autouse=True)
def no_other_applications(yarn_cluster: HadoopNodes) -> None:
    end_applications(yarn_cluster)


@pytest.fixture
async def master(yarn_cluster: HadoopNodes, tmp_path: Path) -> AsyncIterator[YarnMaster]:
    async with running_master(yarn_cluster, tmp_path) as master:
        content, digest = pack(is_imported=True)
        await master.call(
            "put_archive", Archive(digest=digest, data_base64=base64.b64encode(content).decode())
        )
        yield master
    assert_nothing_left(yarn_cluster)


@asynccontextmanager
async def container(
    master: YarnMaster, node: str, launch: Launch, *, gpus: int = 0
) -> AsyncIterator[tuple[Ask, AgentClient]]:
    """Run an agent in a container of this node. Yield the request for the container, and a client of the agent."""
    public, secret, mine, my_secret = (key.decode() for _ in range(2) for key in zmq.curve_keypair())
    settings = AgentSettings(
        address="$NM_HOST",
        ports=(free_port(),),
        is_remote=True,
        is_per_kernel=True,
        shares_session=True,
        gpus=4,
        gpu_visibility="locks",
        node="$NM_HOST",
        daemon_address="$NM_HOST:$NM_PORT",
        daemon_name="NodeManager",
    )
    assignment = Assignment(
        keys=ServerKeys(public=public, secret=secret, clients=frozenset([mine])),
        reserve=Reserve(lease=replace(LEASE, request=Request(gpus=gpus)), is_granted=True, launch=launch),
    )
    others = {GPU: gpus} if gpus else {}
    ask = await master.ask(
        node,
        resources=Resources(memory_mb=512, vcores=1, others=others),
        command=COMMAND,
        archive=pack(is_imported=True)[1],
        assignment_base64=base64.b64encode(dump_start(settings, assignment)).decode(),
    )
    await master.await_state(ask, "started")
    endpoint = f"tcp://{master.cluster.address_of(node)}:{settings.ports[0]}"
    client = await connect(endpoint, ClientKeys(server=public, public=mine, secret=my_secret))
    try:
        yield ask, client
    finally:
        await client.close()
        await master.release(ask)


async def test_a_container_ends_with_all_that_its_kernel_started(
    master: YarnMaster, runtime_dir: Path
) -> None:
    launch = a_launch((sys.executable, "-S", "-c", PARENT_KERNEL, "{connection_file}"))
    async with container(master, "nm2", launch) as (ask, client):
        first = await client.launch(launch)
        children = [child.pid for child in await find_children(client)]
        agent = psutil.Process(first.pid).ppid()
        assert os.getpgid(first.pid) == os.getsid(first.pid) == os.getsid(agent)
        assert len(live(children)) == 4
        await client.stop("k", 0)
        await master.until(lambda: not live(children), "the processes end with their kernel")
        second = await client.launch(replace(launch, launch_id="second"))
        pids = [agent, second.pid, *(child.pid for child in await find_children(client))]
        assert len(live(pids)) == 6
        await master.release(ask)
        await master.until(lambda: not live(pids), "the processes end with their container")


async def test_kernels_of_a_node_share_its_gpus_out(master: YarnMaster, runtime_dir: Path) -> None:
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    async with (
        container(master, "nm3", launch) as (_, plain),
        container(master, "nm3", launch, gpus=2) as (_, one),
        container(master, "nm3", launch, gpus=2) as (_, two),
    ):
        without = await plain.launch(launch)
        assert (without.how, without.device_ids) == ("exec", ())
        devices = [(await client.launch(launch)).device_ids for client in (one, two)]
        assert sorted(sum(devices, ())) == ["0", "1", "2", "3"]
        shown = psutil.Process((await one.holdings()).kernels[0].pid).environ()
        assert shown["CUDA_VISIBLE_DEVICES"] == ",".join(devices[0])
