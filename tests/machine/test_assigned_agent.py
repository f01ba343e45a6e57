"""An agent whose own archive of code brings its keys, its lease and its first launch, as in a pod or container."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.machine.container_agent import LEASE, a_launch, assigned_agent, evaluate, start_archive
from kit.machine.daemons import wait_gone
from kit.machine.descriptors import list_inheritable, private_files
from kit.machine.tiny_kernel import TINY_ARGV
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


async def test_the_first_process_of_a_pod_forks_a_kernel_that_knows_no_roost(runtime_dir: Path) -> None:
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    async with assigned_agent(runtime_dir, launch, before=b"HDTS" * 100, after=b"x" * 60_000) as agent:
        process = await agent.client.launch(launch)
        assert process.how == "forked"
        assert psutil.Process(process.pid).cmdline()[1:3] == ["-m", "ipykernel_launcher"]
        assert os.getsid(process.pid) == process.pid
        found = await evaluate(
            process.connection, "__name__, sorted(sys.modules), sys.path, dict(os.environ)"
        )
        name, modules, paths, environment = found
        assert name == "__main__"
        assert not [module for module in modules if module.startswith("roost")]
        assert not [path for path in paths if str(runtime_dir) in path]
        assert environment["ROOST_RUNTIME_DIR"] == launch.env["ROOST_RUNTIME_DIR"]
        collector = "(gc := __import__('gc')).get_threshold()[0], gc.collect(), gc.get_threshold()"
        at_start, _, afterwards = await evaluate(process.connection, collector)
        assert at_start > afterwards[0]
        assert afterwards == gc.get_threshold()
    assert wait_gone(process.pid, 0)


@pytest.mark.parametrize("may_fork", [True, False])
async def test_a_kernel_in_a_container_has_no_files_of_its_agent_or_of_the_container(
    runtime_dir: Path, may_fork: bool
) -> None:
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    launch = replace(launch, may_fork=may_fork)
    with socket.socket() as leaked:
        async with assigned_agent(runtime_dir, launch, pass_fds=[leaked.fileno()]) as agent:
            process = await agent.client.launch(launch)
            await evaluate(process.connection, "1")
            assert process.how == ("forked" if may_fork else "exec")
            for pid in (process.pid, agent.process.pid):
                assert sorted(list_inheritable(pid)) == [0, 1, 2]
            files = [private_files(each) for each in (process.pid, agent.process.pid, os.getpid())]
            assert files[0] & files[1] == files[0] & files[2] == files[1] & files[2] == set()
            assert os.readlink(f"/proc/self/fd/{leaked.fileno()}") in files[2]


@pytest.mark.parametrize(
    "changes", [{"may_fork": False}, {"env": {"PYTHONHASHSEED": "7"}}, {"argv": TINY_ARGV}]
)
async def test_the_first_process_leaves_other_kernels_to_the_agent(
    runtime_dir: Path, changes: dict[str, Any]
) -> None:
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    launch = replace(launch, **{**changes, "env": {**launch.env, **changes.get("env", {})}})
    async with assigned_agent(runtime_dir, launch) as agent:
        process = await agent.client.launch(launch)
        assert process.how == "exec"
        reason = "sets `fork` to false" if "may_fork" in changes else "forks only its first kernel"
        assert reason in process.why_not_forked


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
