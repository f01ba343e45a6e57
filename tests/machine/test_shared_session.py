"""An agent that leads a container's session and shares the session with its kernel, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kit.machine.container_agent import PARENT_KERNEL, AssignedAgent, a_launch, assigned_agent, find_children
from roost.launchers.protocol.messages import KernelProcess, Launch
from roost.testing.deadlines import allow_s, until


@pytest.fixture
def launch(runtime_dir: Path) -> Launch:
    """Return the launch of `PARENT_KERNEL`, a kernel with child processes."""
    return a_launch((sys.executable, "-S", "-c", PARENT_KERNEL, "{connection_file}"))


async def wait_until_ended(*processes: psutil.Process) -> None:
    await until(lambda: not any(map(lives, processes)), f"these processes end: {processes}", 60, 0.01)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def killed() -> Iterator[list[psutil.Process]]:
    """Yield a list. The processes that a test adds to the list are killed at the test's end."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.is_running():
            process.kill()


async def test_the_kernel_is_in_the_group_of_its_agent_and_ends_with_it(runtime_dir: Path) -> None:
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    async with assigned_agent(runtime_dir, launch, shares_session=True) as agent:
        process = await agent.client.launch(launch)
        assert os.getsid(process.pid) == os.getpgid(process.pid) == agent.process.pid
        kernel = psutil.Process(process.pid)
        agent.process.kill()
        await agent.process.wait()
        await wait_until_ended(kernel)


async def test_nothing_of_the_old_kernel_is_left_at_a_restart(runtime_dir: Path, launch: Launch) -> None:
    async with assigned_agent(runtime_dir, launch, shares_session=True) as agent:
        first = await agent.client.launch(launch)
        children = await find_children(agent.client)
        assert all(map(lives, children))
        (use,) = await agent.client.stats()
        assert use.processes == 1 + len(children)
        ended = await agent.client.stop("k", 0)
        assert ended.exit_code == -signal.SIGKILL
        await wait_until_ended(*children)
        second = await agent.client.launch(replace(launch, launch_id="second"))
        assert second.pid != first.pid
        assert os.getpgid(second.pid) == agent.process.pid


async def test_a_kernel_that_exits_leaves_nothing_behind(runtime_dir: Path, launch: Launch) -> None:
    async with assigned_agent(runtime_dir, launch, shares_session=True) as agent:
        process = await agent.client.launch(launch)
        children = await find_children(agent.client)
        os.kill(process.pid, signal.SIGKILL)
        await wait_until_ended(*children)
        assert (await ended_kernel(agent)).exit_code == -signal.SIGKILL


async def ended_kernel(agent: AssignedAgent) -> KernelProcess:
    """Wait until the agent knows that the kernel has ended, and return the kernel."""

    async def find() -> KernelProcess | None:
        kernel = (await agent.client.holdings()).kernels[0]
        return None if kernel.is_running else kernel

    return await until(find, "the agent knows that the kernel has ended", 60, 0.01)


async def test_signals_reach_the_kernel_and_its_group_but_not_the_agent(
    runtime_dir: Path, launch: Launch
) -> None:
    async with assigned_agent(runtime_dir, launch, shares_session=True) as agent:
        process = await agent.client.launch(launch)
        here, away, daemon, deaf = await find_children(agent.client)
        assert await agent.client.signal("k", signal.SIGINT)
        await wait_until_ended(here, deaf)

        async def is_printed() -> bool:  # the children may end before the kernel prints
            return "interrupted" in await agent.client.logs("k", 1000)

        await until(is_printed, "the kernel prints that it was interrupted", 60, 0.01)
        assert all(map(lives, (away, daemon, psutil.Process(process.pid))))
        assert agent.process.returncode is None


async def test_a_terminated_container_leaves_nothing_behind(runtime_dir: Path, launch: Launch) -> None:
    async with assigned_agent(runtime_dir, launch, shares_session=True) as agent:
        process = psutil.Process((await agent.client.launch(launch)).pid)
        children = await find_children(agent.client)
        os.killpg(agent.process.pid, signal.SIGTERM)
        await agent.process.wait()
        await wait_until_ended(process, *children)


def test_only_the_processes_that_the_manager_does_not_reach_are_killed_first() -> None:
    program = """
import subprocess
from roost.launchers.agent.machine.sessions import kill_outsiders
here, away = (subprocess.Popen(["sleep", "300"], start_new_session=is_away) for is_away in (False, True))
kill_outsiders()
print(away.wait(60), here.poll())
here.kill()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=allow_s(120)
    )
    assert (done.stdout, done.stderr) == ("-9 None\n", "")


async def test_the_manager_ends_all_of_the_group_of_a_killed_agent(
    runtime_dir: Path, launch: Launch, killed: list[psutil.Process]
) -> None:
    async with assigned_agent(runtime_dir, launch, shares_session=True) as agent:
        process = psutil.Process((await agent.client.launch(launch)).pid)
        here, away, daemon, deaf = await find_children(agent.client)
        killed += [away, daemon]  # in other sessions: not even the manager finds these
        agent.process.kill()
        await agent.process.wait()
        await wait_until_ended(process)
        os.killpg(agent.process.pid, signal.SIGKILL)
        await wait_until_ended(here, deaf)
