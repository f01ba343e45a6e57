"""An agent whose own archive of code brings its keys, its lease and its first launch, as in a pod or container."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from kit.machine.container_agent import LEASE, a_launch, assigned_agent, evaluate, start_archive
from kit.machine.descriptors import list_inheritable, private_files
from roost.launchers.agent.main import NO_PORT_EXIT
from roost.launchers.daemon.private_files import read_json
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Assignment, KernelProcess, Reserve
from roost.launchers.protocol.rpc import RpcError, ServerKeys
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until


async def test_the_assigned_kernel_starts_before_anyone_asks(runtime_dir: Path) -> None:
    async with assigned_agent(runtime_dir, a_launch()) as agent:

        async def read_kernels() -> tuple[KernelProcess, ...]:
            return (await agent.client.holdings()).kernels

        kernels = await until(read_kernels, "the agent has a kernel", 60, 0.02)
        assert (await agent.client.holdings()).leases == (LEASE,)
        joined = await agent.client.launch(a_launch())
        assert joined.pid == kernels[0].pid, "a later call joins the launch"
        assert read_json(runtime_dir / "agent" / "ready.json")["keys"] == {}, "the client's secret stays away"
        assert "status" not in [event.kind for event in agent.events], "it does not speak for its node"


async def test_a_kernel_in_a_container_is_executed_without_files_of_its_agent_or_of_the_container(
    runtime_dir: Path,
) -> None:
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    with socket.socket() as leaked:
        async with assigned_agent(runtime_dir, launch, pass_fds=[leaked.fileno()]) as agent:
            process = await agent.client.launch(launch)
            await evaluate(process.connection, "1")
            assert process.how == "exec"
            assert "has no warm process" in process.why_not_forked
            assert sorted(list_inheritable(process.pid)) == [0, 1, 2]
            files = [private_files(each) for each in (process.pid, agent.process.pid, os.getpid())]
            assert files[0] & files[1] == files[0] & files[2] == set()
            assert os.readlink(f"/proc/self/fd/{leaked.fileno()}") in files[1] & files[2]


async def test_a_failed_assignment_answers_whoever_asks_for_it(runtime_dir: Path) -> None:
    async with assigned_agent(runtime_dir, a_launch(("no-such-program",))) as agent:
        with pytest.raises(RpcError, match="'no-such-program' was not found"):
            await agent.client.launch(a_launch(("no-such-program",)))


async def test_the_first_free_port_is_taken(runtime_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = (taken.getsockname()[1], free_port())
        async with assigned_agent(runtime_dir, a_launch(), ports=ports) as agent:
            assert (await agent.client.holdings()).leases == (LEASE,)


async def test_an_agent_without_a_free_port_ends_and_says_so(runtime_dir: Path) -> None:
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    assignment = Assignment(
        keys=ServerKeys(public="", secret="", clients=frozenset()),
        reserve=Reserve(lease=LEASE, is_granted=True, launch=launch),
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = AgentSettings(is_per_kernel=True, ports=(port,), cpus=2, memory_bytes=1000)
        process = await start_archive(runtime_dir, settings, assignment, stderr=asyncio.subprocess.PIPE)
        _, log = await asyncio.wait_for(process.communicate(), allow_s(60))
    assert process.returncode == NO_PORT_EXIT
    assert (
        log.decode()
        .splitlines()[-1]
        .startswith(f"the agent cannot listen at tcp://127.0.0.1, on port {port}")
    )


async def test_the_settings_name_variables_of_the_environment(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_TEST_HOST", "localhost")
    async with assigned_agent(runtime_dir, a_launch(), address="$ROOST_TEST_HOST") as agent:
        process = await agent.client.launch(a_launch())
        assert process.connection.ip == "127.0.0.1", "names become addresses"
