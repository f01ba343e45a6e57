"""kill -9 of each part while kernels are busy: the right kernels live on, the others end, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill
from kit.machine.tiny_kernel import tiny
from roost.scheduler.client import client as roost_client
from roost.scheduler.client.client import Client
from roost.testing.deadlines import allow_s, until


@pytest.fixture
async def notebooks(roost_by_default: None) -> AsyncIterator[list[Notebook]]:
    opened = [Notebook() for _ in range(10)]
    await asyncio.gather(*(notebook.open() for notebook in opened))
    yield opened
    await asyncio.gather(*(notebook.close() for notebook in opened))


async def test_the_agent_of_ten_busy_kernels(notebooks: list[Notebook], settled_runtime_dir: Path) -> None:
    for number, notebook in enumerate(notebooks):
        await notebook.run(f"import os, time; mine = {number}; pid = os.getpid()")
        notebook.client.execute("for done in range(15): time.sleep(0.1)")
    pids = [notebook.pid for notebook in notebooks]
    (agent,) = daemon_pids(settled_runtime_dir, "agent")
    kill(agent)
    for notebook, pid in zip(notebooks, pids, strict=True):
        assert await notebook.value("(mine, pid, done)") == f"({notebooks.index(notebook)}, {pid}, 14)"
    (successor,) = await _agent_after(settled_runtime_dir, agent)
    assert successor != agent

    first, second, third = notebooks[:3]
    await first.interrupt()
    assert await first.value("mine") == "0"
    ports = second.manager.ports
    await second.manager.restart_kernel(now=True)
    await second.client.wait_for_ready(timeout=allow_s(60))
    assert (await second.run("mine"))["ename"] == "NameError"
    assert second.manager.ports == ports
    await third.manager.shutdown_kernel()
    assert not os.path.exists(f"/proc/{pids[2]}/exe")
    third.client.stop_channels()
    notebooks[2] = Notebook()
    await notebooks[2].open()


async def _agent_after(world: Path, killed: int) -> list[int]:
    """Wait for the agent that roost starts after the killed one, and return a list with its pid."""
    return await until(
        lambda: [pid for pid in daemon_pids(world, "agent") if pid != killed], "a new agent has started"
    )


async def test_a_start_that_is_withdrawn_while_the_service_is_stopped(
    client: Client, settled_runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP until the connection is lost. The service then reads the start from its socket, but no cancellation."""
    await client.kernels()
    (service,) = daemon_pids(settled_runtime_dir, "scheduler")
    monkeypatch.setattr(roost_client, "CALL_DEADLINE_S", 1.0)
    os.kill(service, signal.SIGSTOP)
    try:
        starting = asyncio.ensure_future(_start(client, tiny()))
        await asyncio.sleep(12)  # a connection without heartbeats is lost after 10 s
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.sleep(2)  # the first cancellation is given up
    finally:
        os.kill(service, signal.SIGCONT)
    monkeypatch.undo()
    await until(lambda: not client._tasks, "the client has no task")
    assert await client.kernels() == []


async def test_the_service_during_ten_starts(client: Client, settled_runtime_dir: Path) -> None:
    await client.kernels()
    (service,) = daemon_pids(settled_runtime_dir, "scheduler")
    asked = [tiny(cpus=0.01) for _ in range(10)]
    starts = [asyncio.ensure_future(_start(client, one)) for one in asked]
    await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
    kill(service)
    kernels = await asyncio.wait_for(asyncio.gather(*starts), allow_s(60))
    assert {kernel.id for kernel in kernels} == {one.kernel_id for one in asked}
    running = await client.kernels()
    assert sorted(kernel.id for kernel in running) == sorted(one.kernel_id for one in asked)
    assert {kernel.pid for kernel in running} == {kernel.pid for kernel in kernels}
    assert len(_tiny_processes(settled_runtime_dir)) == 10, "a kernel was started twice, or lost"
    await asyncio.gather(*(_stop(client, kernel.id) for kernel in running))
    assert not _tiny_processes(settled_runtime_dir)


async def _start(client: Client, one: object) -> object:
    return await client.start(one)  # type: ignore[arg-type]


async def _stop(client: Client, kernel_id: str) -> None:
    await client.stop(kernel_id, grace_s=0)


def _tiny_processes(world: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"signal.pause" in command and str(world).encode() in command:
                found.append(int(entry.name))
    return found
