"""An agent's TCP port, while 2,000 peers without a key connect to it from the address of its clients.

    pytest -m "" -s tests/machine/faults/test_flood.py

prints, for each kind of peer and limit of descriptors: how long starts take before the flood and in it, and how long
new clients take to connect (the median and the longest), the agent's share of a CPU, its most descriptors and how much
it has grown.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from kit.machine.daemons import agent_folder
from kit.machine.flood import KINDS, Flood
from kit.machine.real_agent import Session, agent_pid, agent_session, end_agent
from roost.launchers.agent.find_or_start import find_or_start_agent
from roost.launchers.daemon.daemon import ensure
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.rpc import ClientKeys, Disconnected
from roost.placement.model.json_codec import encode
from roost.testing.deadlines import allow_s

SETTINGS = AgentSettings(cpus=64, memory_bytes=1000, gpus=0, idle_exit_s=60, address="127.0.0.1")
PEERS = 2_000
STARTS = 6
CONNECTS = 10
LATER_S = 2.0
"""How much longer a start may take in a flood."""
CONNECT_S = 5.0
GROWS_BYTES = 256 << 20
SHORT = {("idle", 1_024, True), ("half", 1_024, True)}
"""The cases that each run of the tests has: the kind, the limit of descriptors, and whether the peers connect again."""
CASES = [
    pytest.param(
        *case,
        marks=[] if case in SHORT else [pytest.mark.long],
        id="-".join(map(str, case)),
    )
    for kind in KINDS
    for limit in (1_024, 20_000)
    for case in ((kind, limit, True), *([(kind, limit, False)] if kind in ("idle", "half") else []))
]


@pytest.fixture
async def limited_agent(runtime_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[Session]:
    """Start an agent with a TCP port and a hard limit of descriptors, and connect to it."""
    folder = agent_folder(runtime_dir)
    program = [sys.executable, "-m", "roost.launchers.agent.main", str(folder), json.dumps(encode(SETTINGS))]
    ensure(
        folder,
        ["/bin/sh", "-c", f'ulimit -n {request.param}; exec "$@"', "sh", *program],
        deadline_s=allow_s(60),
    )
    async with agent_session(SETTINGS) as session:
        yield session
    await end_agent(SETTINGS)


@pytest.mark.parametrize(("kind", "limited_agent", "reconnects"), CASES, indirect=["limited_agent"])
async def test_starts_in_a_flood(
    kind: str, limited_agent: Session, reconnects: bool, request: pytest.FixtureRequest
) -> None:
    endpoint, keys = await find_or_start_agent(SETTINGS)
    agent = psutil.Process(agent_pid())
    await start_kernels(limited_agent, "warm-up")
    calm_s = await start_kernels(limited_agent, "calm")
    before_bytes, most = agent.memory_info().rss, {"descriptors": 0, "bytes": 0}
    port = int(endpoint.rpartition(":")[2])
    with Flood(port, kind, peers=PEERS, reconnects=reconnects, server_key=keys.server):
        await asyncio.sleep(1)
        before_s, began = sum(agent.cpu_times()[:2]), time.monotonic()
        with watched(agent, most):
            flooded_s = await start_kernels(limited_agent, "flooded")
            connect_s = [await connect(endpoint, keys) for _ in range(CONNECTS)]
        share = (sum(agent.cpu_times()[:2]) - before_s) / (time.monotonic() - began)
    print(
        f"\n{request.node.callspec.id}: calm {show(calm_s)}, flooded {show(flooded_s)}, connect {show(connect_s)}, "
        f"CPU {share:.0%}, {most['descriptors']} descriptors, "
        f"{(most['bytes'] - before_bytes) / 2**20:+.0f} MiB"
    )
    assert max(flooded_s) < statistics.median(calm_s) + allow_s(LATER_S)
    assert max(connect_s) < allow_s(CONNECT_S)
    assert most["bytes"] < before_bytes + GROWS_BYTES


async def start_kernels(session: Session, name: str) -> list[float]:
    """Start kernels one after another, and end them. Return the seconds of each start."""
    took_s = []
    names = [f"{name}-{number}" for number in range(STARTS)]
    for each in names:
        began = time.monotonic()
        await session.reserve(each)
        await session.launch(each)
        took_s.append(time.monotonic() - began)
    for each in names:
        await session.client.release(f"roost:{each}:1")
    return took_s


async def connect(endpoint: str, keys: ClientKeys) -> float:
    """Connect a new client, which tries again as services do. Return how many seconds that took."""
    began = time.monotonic()
    while True:
        client = AgentClient(endpoint, keys)
        with suppress(Disconnected, asyncio.TimeoutError):
            await client.connect(timeout_s=allow_s(CONNECT_S))
            break
        assert time.monotonic() < began + 2 * allow_s(CONNECT_S), "no connection"
    took_s = time.monotonic() - began
    await client.close()
    return took_s


@contextmanager
def watched(process: psutil.Process, most: dict[str, int]) -> Iterator[None]:
    """Note in `most` the most descriptors and memory that the process has meanwhile."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            most["descriptors"] = max(most["descriptors"], process.num_fds())
            most["bytes"] = max(most["bytes"], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def show(values_s: list[float]) -> str:
    return f"{1e3 * statistics.median(values_s):.0f}/{1e3 * max(values_s):.0f} ms"
