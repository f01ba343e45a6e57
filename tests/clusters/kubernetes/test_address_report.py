"""A pod that reports its kernel, or its agent's address, to the service that has started it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from kit.machine.container_agent import LEASE, a_launch, connect, evaluate, start_archive
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import AgentAddress, Assignment, Launch, Reserve
from roost.launchers.protocol.rpc import RemoteError, ServerKeys
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
            address, kernel = reports.read(AGENT[0])
            assert address is not None
            assert kernel is None
            await check(address)
    finally:
        await reports.close()


ARGV = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")


async def test_the_service_learns_of_the_kernel_before_there_is_an_agent(runtime_dir: Path) -> None:
    # A busy pod reports its agent alone: it waits 5 s for its kernel, and 0.5 s for the answer.
    for number in range(5):
        folder = runtime_dir / str(number)
        folder.mkdir()
        if await is_learnt_before_the_agent(folder):
            return
    raise AssertionError("no pod has reported its kernel")


async def is_learnt_before_the_agent(folder: Path) -> bool:
    """Check what the service learns from one pod. Return False if the pod has reported its agent alone."""
    reported = asyncio.get_running_loop().create_future()

    def note(lease_id: str) -> None:  # the pod waits for the answer meanwhile
        if not reported.done():
            reported.set_result((lease_id, (folder / "agent" / "ready.json").exists()))

    reports = AddressReports(note)
    await reports.open(SERVICE, "127.0.0.1", free_port())
    port = free_port()
    reports.expect(AGENT[0], LEASE.id, [port])
    try:
        launch = a_launch(ARGV)
        async with agent_that_reports(folder, reports.endpoint, port, launch):
            lease_id, has_agent = await asyncio.wait_for(reported, allow_s(60))
            assert lease_id == LEASE.id
            address, kernel = reports.read(AGENT[0])
            assert address is not None
            if kernel is None:
                return False
            assert not has_agent
            connection = replace(launch.connection, ip=kernel.ip).with_ports(kernel.ports)
            assert await evaluate(connection, "os.getpid()") == kernel.pid
            client = await connect(address.endpoint, address.keys)
            joined = await client.launch(launch)
            assert (joined.pid, joined.connection) == (kernel.pid, connection)
            assert joined.process_started_at == kernel.started_at
            page = await client.journal(LEASE.kernel_id)
            await client.close()
            inputs = [entry for entry in page.entries if "execute_input" in entry.data]
            assert len(inputs) == 1, "the journal has the messages from before the agent's start"
            return True
    finally:
        await reports.close()


async def test_a_kernel_that_ends_at_once_is_left_to_the_agent(runtime_dir: Path) -> None:
    reported = asyncio.get_running_loop().create_future()
    reports = AddressReports(reported.set_result)
    await reports.open(SERVICE, "127.0.0.1", free_port())
    port = free_port()
    reports.expect(AGENT[0], LEASE.id, [port])
    broken = a_launch((*ARGV, "--no-such-option=1", "--IPKernelApp.transport=x"))
    try:
        async with agent_that_reports(runtime_dir, reports.endpoint, port, broken):
            await asyncio.wait_for(reported, allow_s(60))
            address, kernel = reports.read(AGENT[0])
            assert kernel is None
            assert address is not None
            client = await connect(address.endpoint, address.keys)
            with pytest.raises(RemoteError, match="while it was starting"):
                await client.launch(broken)
            await client.close()
    finally:
        await reports.close()


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
