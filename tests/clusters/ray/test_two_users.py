"""Two agents that share the machine's book, as the agents of two users do. A start waits for the other agent's GPU.

Both agents belong to this user, in two runtime folders.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit.machine.daemons import kill, settle
from kit.machine.real_agent import Session, agent_pid, agent_session, alive
from kit.machine.tiny_kernel import tiny
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import KernelProcess
from roost.placement.model import Request
from roost.scheduler.client.client import Client, connect, disconnect
from roost.testing.deadlines import until
from roost.testing.leftovers import private_runtime_dir

OTHERS = AgentSettings(
    cpus=8, memory_bytes=64 << 30, gpus=2, gpu_model="T4", idle_exit_s=60, divides_machine=True
)
SENTENCE = "1 of 2 GPUs is held by other kernels of this machine"


@pytest.fixture
def client(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Return a client of a service on a machine with two GPUs."""
    settings = {"RoostLocalBackend": {"gpus": 2, "gpu_model": "T4", "cpus": 8, "memory": "64GiB"}}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    yield connect("local")
    disconnect()
    settle(runtime_dir)


@dataclass
class OtherAgent:
    """The agent of the other runtime folder, and its kernel."""

    session: Session
    pid: int
    kernel: KernelProcess

    async def stop(self) -> None:
        await self.session.client.release(self.kernel.lease_id)

    def kill(self) -> None:
        """End the agent and its kernel at once, so that neither can clean up."""
        os.kill(self.pid, signal.SIGSTOP)  # else it would give its promise back, when its kernel ends
        kill(self.kernel.pid)
        kill(self.pid)


@asynccontextmanager
async def other_agent(**wish: float) -> AsyncIterator[OtherAgent]:
    """Start an agent in another runtime folder, with the test's book, and a kernel that holds `wish`."""
    own = {name: os.environ[name] for name in ("ROOST_RUNTIME_DIR", "ROOST_MACHINE_DIR")}
    with private_runtime_dir(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOST_MACHINE_DIR", own["ROOST_MACHINE_DIR"])
        async with agent_session(OTHERS) as session:
            await session.reserve("theirs", **wish)
            other = OtherAgent(session, agent_pid(), await session.launch("theirs"))
            patch.setenv("ROOST_RUNTIME_DIR", own["ROOST_RUNTIME_DIR"])
            try:
                yield other
            finally:
                if alive(other.kernel):
                    await other.stop()
        kill(other.pid)


async def until_queued(client: Client, kernel_id: str) -> None:
    states: list[tuple[str, str]] = []

    async def is_queued() -> bool:
        nonlocal states
        states = [(each.id, each.state) for each in await client.kernels()]
        return states == [(kernel_id, "queued")]

    await until(is_queued, lambda: f"only this kernel is queued: {states}", 60, 0.02)


@pytest.mark.parametrize("way", ["stopped", "killed"])
async def test_a_start_begins_when_another_agent_holds_the_gpu_no_more(way: str, client: Client) -> None:
    async with other_agent(gpus=1) as other:
        start = client.start(tiny("mine", gpus=2))
        await until_queued(client, "mine")
        assert (await client.explain(Request(gpus=2)))["others"]["text"] == SENTENCE
        (node,) = await client.nodes()
        assert sorted(device["promised"] for device in node["devices"]) == [0, 1]
        assert (node["gpus_promised"], node["kernels"]) == (1, 0)
        began = time.monotonic()
        if way == "stopped":
            await other.stop()
        else:
            await asyncio.to_thread(other.kill)
        assert (await start).state == "running"
        print(f"{way}: it ran {time.monotonic() - began:.3f} s later")
        assert not alive(other.kernel)
        decision = await client.explain(Request(gpus=1))
        assert decision["others"] is None, "the own kernel alone holds both GPUs"
        await client.stop("mine")


async def test_a_start_that_needs_cpus_waits_with_a_reason_too(client: Client) -> None:
    async with other_agent(cpus=6.5, memory_bytes=60 << 30) as other:
        start = client.start(tiny("mine", cpus=2))
        await until_queued(client, "mine")
        held = {
            "6.5 of 8 CPUs are": Request(cpus=2),
            "60 GiB of 64 GiB of memory is": Request(memory_bytes=8 << 30),
        }
        for amounts, request in held.items():
            text = (await client.explain(request))["others"]["text"]
            assert text == f"{amounts} held by other kernels of this machine"
        (node,) = await client.nodes()
        assert (node["cpus_promised"], node["memory_promised_bytes"]) == (6.5, 60 << 30)
        await other.stop()
        assert (await start).state == "running"
        await client.stop("mine")
