"""A kernel publishes messages of any form. The agent goes on, does not grow, and shows all kernels and later cells.

`make long` sends more of them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import zmq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kit.jupyter.hostile_kernel import BATCH, HOSTILE_ARGV, MESSAGES, good_cell, messages
from kit.machine.daemons import daemon_pids
from kit.machine.live_folders import read_files
from kit.machine.tiny_kernel import tiny
from roost.provisioners.journal_reader import CellRun, read_runs
from roost.scheduler.client.client import Client
from roost.scheduler.errors import KernelDied
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import until

SHOWN_S = 60.0
GROWS_BYTES = 32 << 20
"""How much the agent may grow. The journal has 16 MiB of it."""


class HostileKernel:
    """A started kernel, which publishes all messages that it receives."""

    def __init__(self, client: Client, kernel: Kernel, agent: psutil.Process) -> None:
        self.id = kernel.id
        self.agent = agent
        self._client = client
        assert kernel.connection is not None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._shell = self._context.socket(zmq.DEALER)
        self._shell.linger = 0
        self._shell.sndhwm = 0
        self._shell.connect(f"tcp://{kernel.connection.ip}:{kernel.connection.shell_port}")

    def publish(self, *frames: bytes) -> None:
        self._shell.send_multipart(frames)

    async def run_good_cell(self, name: str) -> CellRun:
        """Publish a good cell and return it as the journal shows it."""
        for frames in good_cell(name):
            self.publish(*frames)

        async def find() -> CellRun | None:
            runs = await read_runs(self._client, self.id, session=name)
            return runs[-1] if runs and runs[-1].is_done else None

        return await until(find, "a good cell is shown", SHOWN_S, 0.02)

    def close(self) -> None:
        self._shell.close()
        self._context.term()


@pytest.fixture
async def hostile(client: Client, settled_runtime_dir: Path) -> AsyncIterator[HostileKernel]:
    """Start a hostile kernel and an innocent one. The agent receives what the hostile kernel publishes."""
    started = await client.start(tiny("hostile", argv=HOSTILE_ARGV))
    await client.start(tiny("innocent"))
    (pid,) = daemon_pids(settled_runtime_dir, "agent")
    kernel = HostileKernel(client, started, psutil.Process(pid))
    numbers = itertools.count()

    async def is_subscribed() -> bool:
        kernel.publish(*good_cell(f"early-{next(numbers)}")[0])
        return bool((await client.journal("hostile")).last)

    await until(is_subscribed, "the agent receives what the kernel publishes", 20, 0.02)
    await kernel.run_good_cell("first")
    yield kernel
    kernel.close()
    for each in await client.kernels():
        await client.stop(each.id, grace_s=0)
    assert daemon_pids(settled_runtime_dir, "agent") == [pid]
    for log in settled_runtime_dir.glob("*/log"):
        assert "Traceback" not in log.read_text()


async def check(client: Client, kernel: HostileKernel, name: str) -> None:
    """Check that a good cell is shown as it is, and both kernels in the list."""
    run = await kernel.run_good_cell(name)
    assert (run.code, run.execution_count, run.is_cut) == ("print(name)", 7, False)
    assert run.outputs == [{"output_type": "stream", "name": "stdout", "text": name}]
    states = {each.id: each.use.execution_state for each in await client.kernels(with_use=True) if each.use}
    assert states["innocent"] == ""
    assert states["hostile"] in ("busy", "idle", "starting")


async def test_messages_of_any_form(client: Client, hostile: HostileKernel) -> None:
    before_bytes = hostile.agent.memory_info().rss
    batches: list[list[list[bytes]]] = []

    @settings(
        max_examples=max(1, MESSAGES // 10 // BATCH),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(messages(), min_size=BATCH, max_size=BATCH))
    def gather(batch: list[list[bytes]]) -> None:
        batches.append(batch)

    gather()
    for number, batch in enumerate(batches):
        for frames in batch:
            hostile.publish(*frames)
        await check(client, hostile, f"good-{number}")
        assert hostile.agent.memory_info().rss < before_bytes + GROWS_BYTES
    runs = await read_runs(client, hostile.id)
    assert runs[-1].outputs == [
        {"output_type": "stream", "name": "stdout", "text": f"good-{len(batches) - 1}"}
    ]


async def test_last_words_reach_the_user_and_no_log(client: Client, settled_runtime_dir: Path) -> None:
    code = "print('API_' + 'KEY=hush', flush=True); raise SystemExit(3)"
    with pytest.raises(KernelDied, match="API_KEY=hush") as died:
        await client.start(tiny(argv=(sys.executable, "-S", "-c", code)))
    assert "API_KEY=hush" in died.value.fields["log_tail"]
    logs = {log: text.decode() for log, text in read_files(settled_runtime_dir) if log.name.startswith("log")}
    assert {log.parent.name.partition(".")[0].partition("-")[0] for log in logs} >= {"agent", "scheduler"}
    assert any("exited with code 3 while it was starting" in text for text in logs.values())
    assert not any("API_KEY" in text or "hush" in text for text in logs.values())
