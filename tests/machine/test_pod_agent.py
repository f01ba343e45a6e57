"""The agent of a pod as other packages start it: its command, its code, its address and its last words."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kit.machine.container_agent import evaluate
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import (
    AgentAddress,
    AgentEvent,
    Connection,
    Launch,
    Lease,
    Owner,
    Reserve,
)
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import (
    agent_archive,
    agent_command,
    dump_lease,
    load_lease,
    read_address,
    shorten_id,
)
from roost.testing.deadlines import allow_s, until

LEASE = Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1))


def a_launch(**env: str) -> Launch:
    return Launch(
        launch_id="1",
        lease_id=LEASE.id,
        kernel_id="k",
        argv=(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        env=env,
        cwd="/",
        connection=Connection(key="k"),
    )


async def find_address(process: asyncio.subprocess.Process, folder: Path) -> AgentAddress:
    """Return the address of a pod's agent once it listens."""

    def find() -> AgentAddress | None:
        assert process.returncode is None, "the agent has ended"
        return read_address(str(folder))

    return await until(find, "the agent listens", 60, 0.02)


@asynccontextmanager
async def pod(
    command: Sequence[str], folder: Path, **env: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, AgentAddress]]:
    """Run the first process of a pod until the block ends. Yield it, with the address of its agent."""
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **env})
    try:
        yield process, await asyncio.wait_for(find_address(process, folder), allow_s(60))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), allow_s(60)) == 0


@asynccontextmanager
async def connected(
    address: AgentAddress, events: asyncio.Queue[AgentEvent] | None = None
) -> AsyncIterator[AgentClient]:
    client = AgentClient(address.endpoint, address.keys, on_event=(events or asyncio.Queue()).put_nowait)
    await client.connect()
    try:
        yield client
    finally:
        await client.close()


async def test_a_shell_fills_in_the_address_and_then_becomes_the_agent(runtime_dir: Path) -> None:
    folder = runtime_dir / "agent"
    command = agent_command(sys.executable, str(folder), address="$NODE_ADDRESS")
    script = f"export NODE_ADDRESS=$(echo localhost)\nexec {shlex.join(command)}\n"
    async with pod(["sh", "-c", script], folder) as (process, address):
        assert address.endpoint.startswith("tcp://127.0.0.1:"), "a host's name becomes its IP address"
        async with connected(address) as client:
            await client.reserve(Reserve(lease=LEASE, is_granted=True))
            connection = (await client.launch(a_launch())).connection
            assert connection is not None
            assert connection.ip == "127.0.0.1", "the kernel listens where its agent does"
            await client.release(LEASE.id)
        assert await asyncio.wait_for(process.wait(), allow_s(60)) == 0, "it leaves with its last lease"
    assert read_address(str(folder)) is None, "an agent that has left has no address"


async def test_an_agent_whose_address_is_unknown_says_so(runtime_dir: Path) -> None:
    command = agent_command(sys.executable, str(runtime_dir / "agent"), address="$ROOST_NO_SUCH_VARIABLE")
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, log = await asyncio.wait_for(process.communicate(), allow_s(60))
    assert process.returncode == 1
    assert b"this node's own address $ROOST_NO_SUCH_VARIABLE is unknown here" in log


def without_roost(folder: Path) -> Mapping[str, str]:
    """Return a PYTHONPATH with all installed packages but roost. `python -S` does not look for more."""
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "roost" not in entry.name and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    return {"PYTHONPATH": str(packages)}


async def test_a_python_without_roost_runs_the_agent_from_a_file(runtime_dir: Path) -> None:
    env = without_roost(runtime_dir)
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", "import zmq, psutil, ipykernel, roost", env=env, stderr=-1
    )
    _, log = await probe.communicate()
    assert b"No module named 'roost'" in log
    archive, folder = runtime_dir / "roost.zip", runtime_dir / "agent"
    archive.write_bytes(agent_archive())
    assert agent_archive() == archive.read_bytes(), "all pods may share one file"
    python, *command = agent_command(sys.executable, str(folder))
    paths = f"{archive}:{env['PYTHONPATH']}"
    async with pod([python, "-S", *command], folder, PYTHONPATH=paths) as (first, address):
        async with connected(address) as client:
            await client.reserve(Reserve(lease=LEASE, is_granted=True))
            process = await client.launch(a_launch())
            paths = await evaluate(process.connection, "__import__('os').environ['PYTHONPATH']")
            assert paths == env["PYTHONPATH"], "the file is the agent's alone"
            await client.release(LEASE.id)
        assert await asyncio.wait_for(first.wait(), allow_s(60)) == 0


@pytest.mark.parametrize("unit", ["", "job"])
async def test_an_agent_that_is_ended_names_its_unit(runtime_dir: Path, unit: str) -> None:
    folder = runtime_dir / "agent"
    events: asyncio.Queue[AgentEvent] = asyncio.Queue()
    named = {"unit": unit} if unit else {}
    command = agent_command(sys.executable, str(folder), **named)
    async with pod(command, folder) as (process, address), connected(address, events) as client:
        await client.reserve(Reserve(lease=LEASE, is_granted=True))
        process.terminate()
        assert await asyncio.wait_for(process.wait(), allow_s(60)) == 0
        lost = await asyncio.wait_for(events.get(), allow_s(60))
        while lost.kind != "lost":
            lost = await asyncio.wait_for(events.get(), allow_s(60))
    assert lost.reason == f"its {unit or 'pod or container'} was ended"


def test_the_short_form_of_a_lease_id_is_a_safe_name() -> None:
    ids = [f"roost:{kernel_id}:s/1" for kernel_id in ("k", "../k", "a b", "ä" * 256)]
    names = [shorten_id(lease_id) for lease_id in ids]
    assert len(set(names)) == len(ids)
    assert all(name.isascii() and name.isalnum() and len(name) == 20 for name in names)


def test_a_dumped_lease_is_one_line() -> None:
    lease = Lease(id="roost:ä b:s/1", kernel_id="ä b", owner=Owner(user="ada"), request=Request(cpus=1))
    text = dump_lease(lease)
    assert text.isascii()
    assert "\n" not in text
    assert load_lease(text) == lease
