"""An agent that reports its address to the service that has started it."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import zmq
from assigned_agents import LEASE, connect, free_port, start_archive

from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentAddress, Assignment, Reserve
from roost.launchers.protocol.rpc import ServerKeys
from roost.scheduler.backends.agent_per_kernel.address_reports import AddressReports
from roost.scheduler.backends.agent_per_kernel.identity import Identity

SERVICE = Identity(*(key.decode() for key in zmq.curve_keypair()))
AGENT = tuple(key.decode() for key in zmq.curve_keypair())


@asynccontextmanager
async def agent_that_reports(folder: Path, report_to: str, port: int) -> AsyncIterator[None]:
    """Run an agent of a pod. At the end it is terminated, which must take a short time."""
    keys = ServerKeys(public=AGENT[0], secret=AGENT[1], clients=frozenset([SERVICE.public]))
    assignment = Assignment(keys=keys, reserve=Reserve(lease=LEASE, is_granted=True), report_to=report_to)
    settings = AgentSettings(
        is_per_kernel=True, address="127.0.0.1", ports=(port,), cpus=2, memory_bytes=1000
    )
    process = await start_archive(folder, settings, assignment)
    try:
        yield
    finally:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert time.monotonic() - began < 3


async def check(address: AgentAddress) -> None:
    """The agent at this address has its lease."""
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
            assert await asyncio.wait_for(reported, 20) == LEASE.id
            address = reports.address_of(AGENT[0])
            assert address is not None
            await check(address)
    finally:
        await reports.close()


async def test_an_agent_goes_on_if_nobody_answers_its_report(runtime_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = free_port()
        async with agent_that_reports(runtime_dir, f"tcp://127.0.0.1:{silent.getsockname()[1]}", port):
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
