"""A pod whose agent reports its address to the service that has started it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq

from kit.machine.container_agent import LEASE, a_launch, connect, start_archive
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import AgentAddress, Assignment, Launch, Reserve
from roost.launchers.protocol.rpc import ServerKeys
from roost.scheduler.backends.agent_per_kernel.address_reports import AddressReports
from roost.scheduler.backends.key_pair import KeyPair
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s

SERVICE = KeyPair(*(key.decode() for key in zmq.curve_keypair()))
AGENT = tuple(key.decode() for key in zmq.curve_keypair())


@asynccontextmanager
async def agent_that_reports(
    folder: Path, report_to: str, port: int, launch: Launch | None = None
) -> AsyncIterator[None]:
    """Run a pod's agent until the `with` block ends. Then terminate the agent and check that it ends quickly."""
    keys = ServerKeys(public=AGENT[0], secret=AGENT[1], clients=frozenset([SERVICE.public]))
    reserve = Reserve(lease=LEASE, is_granted=True, launch=launch)
    assignment = Assignment(keys=keys, reserve=reserve, report_to=report_to)
    settings = AgentSettings(
        is_per_kernel=True, address="127.0.0.1", ports=(port,), cpus=2, memory_bytes=1000
    )
    process = await start_archive(folder, settings, assignment)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), allow_s(5)) == 0


async def check(address: AgentAddress) -> None:
    """Check that the agent at this address holds `LEASE` and nothing else."""
    client: AgentClient = await connect(address.endpoint, address.keys)
    assert (await client.holdings()).leases == (LEASE,)
    await client.close()


async def test_the_service_learns_the_address_as_soon_as_the_agent_listens(runtime_dir: Path) -> None:
    reported = asyncio.get_running_loop().create_future()
    reports = AddressReports(reported.set_result)
    await reports.open(SERVICE, "127.0.0.1", free_port())
    port = free_port()
    reports.expect(AGENT[0], LEASE.id, [port])
    try:
        async with agent_that_reports(runtime_dir, reports.endpoint, port):
            assert await asyncio.wait_for(reported, allow_s(60)) == LEASE.id
            address = reports.read(AGENT[0])
            assert address is not None
            await check(address)
    finally:
        await reports.close()


ARGV = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")


@pytest.mark.parametrize("argv", [(), ARGV])
async def test_an_agent_goes_on_if_nobody_answers_its_report(
    runtime_dir: Path, argv: tuple[str, ...]
) -> None:
    launch = a_launch(argv) if argv else None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = free_port()
        async with agent_that_reports(
            runtime_dir, f"tcp://127.0.0.1:{silent.getsockname()[1]}", port, launch
        ):
            await check(AgentAddress(endpoint=f"tcp://127.0.0.1:{port}", keys=SERVICE.keys_for(AGENT[0])))


async def test_an_agent_goes_on_if_its_report_is_refused(runtime_dir: Path) -> None:
    reports = AddressReports(lambda _: None)
    await reports.open(SERVICE, "127.0.0.1", free_port())
    port = free_port()
    try:
        async with agent_that_reports(runtime_dir, reports.endpoint, port):
            await check(AgentAddress(endpoint=f"tcp://127.0.0.1:{port}", keys=SERVICE.keys_for(AGENT[0])))
    finally:
        await reports.close()
