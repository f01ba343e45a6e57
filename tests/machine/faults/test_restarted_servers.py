"""A Jupyter Server that is killed again and again while four notebooks run cells."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.jupyter.front_end import FrontEnd, Message, front_end, texts
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.restarted_servers import end, listed, serving, shown, start
from kit.machine.daemons import settle
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import until

pytestmark = pytest.mark.long
ROUNDS = int(os.environ.get("ROOST_ROUNDS", "100"))
NOTEBOOKS = 4


class Notebook:
    """One client of one kernel. It runs one cell after the other, and goes on after each restart of the server."""

    def __init__(self, kernel_id: str, number: int, random: random.Random) -> None:
        self.kernel_id = kernel_id
        self.session = f"client-{number}"
        self.done = 0
        self.lost = 0
        """The number of cells that the server had not yet sent to the kernel when the server was killed."""
        self.is_ending = False
        """True if `run` must begin no new cell."""
        self._random = random
        self._messages: list[Message] = []
        self._cell = ""
        self._lines = 0

    async def run(self, server: Any) -> None:
        """Run cells until this is cancelled or `is_ending`."""
        async with front_end(server, self.kernel_id, self.session) as front:
            front.messages[:0] = self._messages
            self._messages = front.messages
            if self._cell and not front.about(self._cell) and await self._is_lost(front):
                self.lost += 1
                self._cell = ""
            while self._cell or not self.is_ending:
                if not self._cell:
                    self._lines = self._random.randint(0, 40)
                    self._cell = await front.run(
                        f"runs.append({self.done})\nfor i in range({self._lines}):\n"
                        f"    print({self.done}, i, flush=True)\n    time.sleep({self._random.uniform(0, 0.1):.3f})"
                    )
                ended = await front.ended(self._cell, 60)
                assert shown(ended) == "".join(f"{self.done} {i}\n" for i in range(self._lines)), ended
                self._cell = ""
                self.done += 1
                self._messages.clear()

    async def _is_lost(self, front: FrontEnd) -> bool:
        """True if the kernel has not received the current cell, as only a later cell has an answer."""
        await front.ended(await front.run("1"), 60)
        return not front.about(self._cell)


@pytest.mark.timeout(40 * ROUNDS)
async def test_rounds(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = int(os.environ.get("ROOST_SEED") or random.randrange(10_000))
    print(f"seed {seed}, {ROUNDS} rounds")
    chosen = random.Random(seed)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    kernelspecs(tmp_path)
    async with serving(tmp_path) as server:
        kernels = [await start(server, "roosted") for _ in range(NOTEBOOKS)]
        for kernel_id in kernels:
            async with front_end(server, kernel_id) as front:
                await front.ended(await front.run("import time; runs = []"))
        await end(server)
    notebooks = [Notebook(kernel_id, number, chosen) for number, kernel_id in enumerate(kernels)]
    for number in range(ROUNDS):
        async with serving(tmp_path) as server:
            assert (await listed(server)).keys() == set(kernels), f"round {number}"
            holders = {kernel.owner.pid for kernel in await connect("local").kernels()}
            assert holders == {server.pid}, f"round {number}"
            tasks = [asyncio.create_task(notebook.run(server)) for notebook in notebooks]
            failed, _ = await asyncio.wait(
                tasks, timeout=chosen.uniform(0, 3), return_when=asyncio.FIRST_COMPLETED
            )
            for task in failed:
                task.result()
            print(f"round {number}: {[each.done for each in notebooks]} cells", flush=True)
            await end(server)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    async with serving(tmp_path) as server, AsyncExitStack() as stack:
        for notebook in notebooks:
            notebook.is_ending = True
            await notebook.run(server)
            front = await stack.enter_async_context(front_end(server, notebook.kernel_id))
            runs = texts(await front.ended(await front.run("print(runs)")))
            assert runs.strip().startswith(str([*range(notebook.done)])[:-1]), (runs, notebook.done)
            await server.api("DELETE", f"kernels/{notebook.kernel_id}")
    done, lost = sum(each.done for each in notebooks), sum(each.lost for each in notebooks)
    print(
        f"{done} cells ran once and showed all they had printed; {lost} were lost before the kernel had them"
    )
    assert done > ROUNDS
    disconnect()
    await asyncio.to_thread(settle, runtime_dir)


async def test_fifty_kernels_with_a_node_that_does_not_answer(
    ray_cluster: Any, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent of a node with five kernels is stopped, so that it neither answers nor disconnects."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    kernelspecs(tmp_path, backend="ray", config={"cpus": 0.05})
    kernelspecs(tmp_path, "there", backend="ray", config={"cpus": 0.4, "labels": {"zone": "b"}})
    async with serving(tmp_path) as server:
        service = connect("ray")
        there = [await start(server, "there") for _ in range(5)]
        await until_all_run(service)  # or smaller kernels could take the room of the fifth
        first = [*there, *[await start(server, "roosted") for _ in range(45)]]
        await until_all_run(service)
        await end(server)
    nodes = {kernel.id: kernel.node_id for kernel in await service.kernels()}
    frozen = nodes[there[0]]
    assert list(nodes.values()).count(frozen) == len(there), "the node is not full of the first five"
    agents = [process for process in psutil.process_iter() if is_agent_at(process, frozen)]
    assert len(agents) == 1, frozen
    agents[0].suspend()
    try:
        async with serving(tmp_path) as server:
            (line,) = [line for line in server.log if "roost: adopted" in line]
            print(line)
            states = Counter((await listed(server)).values())
            assert states == {"idle": 45, "unknown": 5}
            agents[0].resume()
            await settled(server)
            assert (await listed(server)).keys() == set(first)
            for kernel_id in first:
                assert (await server.api("DELETE", f"kernels/{kernel_id}"))[0] == 204
    finally:
        agents[0].resume()
    disconnect()
    await asyncio.to_thread(settle, runtime_dir)


async def until_all_run(service: Client) -> None:
    """Wait until each kernel has a process."""
    kernels: list[Kernel] = []

    async def do_run() -> bool:
        nonlocal kernels
        kernels = await service.kernels()
        return all(kernel.pid for kernel in kernels)

    await until(
        do_run,
        lambda: f"each kernel has a process: {[(kernel.state, kernel.waits_for) for kernel in kernels]}",
    )


def is_agent_at(process: psutil.Process, address: str) -> bool:
    """True for the agent that listens on an address."""
    try:
        if "roost.launchers.agent.main" not in " ".join(process.cmdline()):
            return False
        return any(
            each.laddr.ip == address for each in process.net_connections("tcp") if each.status == "LISTEN"
        )
    except psutil.Error:
        return False


async def settled(server: Any) -> None:
    """Wait until all kernels of a server are idle."""
    states: dict[str, str] = {}

    async def are_idle() -> bool:
        nonlocal states
        states = await listed(server)
        return set(states.values()) == {"idle"}

    await until(are_idle, lambda: f"all kernels are idle: {states}")
