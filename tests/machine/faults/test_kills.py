"""kill -9 of each part while kernels are busy: the right kernels live on, the others end, and nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from kit import TESTS
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill, wait_gone
from kit.machine.tiny_kernel import tiny
from roost.launchers.daemon.process import is_running, start_time
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


async def test_the_service_while_kernels_run(notebooks: list[Notebook], settled_runtime_dir: Path) -> None:
    notebook = notebooks[0]
    await notebook.run("kept = 42; import time")
    (service,) = daemon_pids(settled_runtime_dir, "scheduler")
    kill(service)
    await notebook.interrupt()
    assert await notebook.value("kept") == "42"
    assert await notebook.manager.is_alive()
    await notebook.run("import os, signal")
    notebook.client.execute("os.kill(os.getpid(), signal.SIGKILL)")

    async def has_ended() -> bool:
        return not await notebook.manager.is_alive()

    await until(has_ended, "the new service reports the kernel's end")
    await notebook.manager.restart_kernel()
    await notebook.client.wait_for_ready(timeout=allow_s(60))


async def test_a_zygote(notebooks: list[Notebook], settled_runtime_dir: Path) -> None:
    kernels = {notebook.pid for notebook in notebooks}
    zygotes = {
        pid
        for pid in _children(daemon_pids(settled_runtime_dir, "agent")[0])
        if "zygote/main.py" in _command(pid)
    } - kernels
    assert zygotes, "no zygote came up while ten kernels were started"
    for notebook in notebooks:
        await notebook.run("kept = 1")
    for pid in zygotes:
        kill(pid)
    assert {await notebook.value("kept") for notebook in notebooks} == {"1"}
    another = Notebook()
    await another.open()
    assert await another.value("1 + 1") == "2"
    await another.close()


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def _command(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


OWNER = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
import roost
from kit.machine.tiny_kernel import tiny

async def main():
    client = roost.connect("local", gpus=2)
    kernels = [await client.start(tiny(name, gpus=1, can_adopt=name == "adoptable")) for name in ("adoptable", "owned")]
    print(json.dumps([kernel.pid for kernel in kernels]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_owner(short_owner_grace: float, client: Client, settled_runtime_dir: Path) -> None:
    """Kill an owner. Its kernel that no application may adopt ends after the grace, and its other kernel lives on."""
    folder = str(TESTS)
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, folder, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    adoptable, owned = json.loads(await asyncio.wait_for(owner.stdout.readline(), allow_s(60)))
    killed_at = time.monotonic()
    owner.kill()
    await owner.wait()
    assert await asyncio.to_thread(wait_gone, owned, 20)
    assert time.monotonic() - killed_at >= short_owner_grace
    await _until_only(client, "adoptable")
    (kernel,) = await client.kernels()
    assert (kernel.pid, kernel.state) == (adoptable, "running")
    adopted_at = start_time(adoptable)
    (node,) = await client.nodes()
    assert sum(device["promised"] for device in node["devices"]) == 1
    await client.stop("adoptable", grace_s=0)
    assert not is_running(adoptable, adopted_at)


async def _until_only(client: Client, kernel_id: str) -> None:
    """Wait until the service knows no kernel but this one."""

    async def is_only() -> bool:
        return [kernel.id for kernel in await client.kernels()] == [kernel_id]

    await until(is_only, "the kernel of the ended owner is gone")
