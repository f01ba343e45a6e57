"""The agents of a cluster, as the service keeps them over its restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Holdings
from roost.launchers.protocol.rpc import ClientKeys
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_node import agents
from roost.scheduler.backends.agent_per_node.agents import AgentPool
from roost.scheduler.backends.agent_per_node.manager import StartedAgent
from roost.scheduler.backends.base import AgentAddress
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s

AGENT = StartedAgent(
    address=AgentAddress(endpoint="tcp://h:1", keys=ClientKeys(server="s", public="p", secret="x")),
    daemon="d",
)


@pytest.mark.parametrize("changed", ["", "settings", "grace"])
async def test_an_agent_is_found_again_before_a_call_if_its_settings_have_changed(
    tmp_path: Path, changed: str
) -> None:
    """Also if only the time has changed for which it keeps kernels without the cluster."""
    found: list[str] = []

    async def start(node_id: str) -> StartedAgent:
        found.append(node_id)
        return AGENT

    pool = AgentPool(tmp_path / "agents.json", Agents(), start, AgentSettings(), 300.0)
    assert await pool.address("n") == AGENT.address
    pool.close()
    settings = AgentSettings(idle_exit_s=7.0) if changed == "settings" else AgentSettings()
    later = AgentPool(
        tmp_path / "agents.json", Agents(), start, settings, 15.0 if changed == "grace" else 300.0
    )
    assert await later.address("n") == AGENT.address
    assert found == (["n", "n"] if changed else ["n"])
    await asyncio.sleep(0)  # the file is written
    later.close()


class LiveAgent(Agents):
    """An agent that listens and holds nothing, in place of all connections."""

    is_there = True

    async def client(self, address: AgentAddress) -> Any:
        return self

    def connected(self, endpoint: str) -> Any:
        return self if self.is_there else None

    async def holdings(self) -> Holdings:
        return Holdings()


@pytest.fixture
async def later(tmp_path: Path) -> AsyncIterator[Callable[..., AgentPool]]:
    """A function that returns the pool of a later service with other settings. Its agents are started by `start`."""
    pools: list[AgentPool] = []

    async def find(_: str) -> StartedAgent:
        return AGENT

    pool = AgentPool(tmp_path / "agents.json", Agents(), find, AgentSettings(), 300.0)
    await pool.address("n")
    pool.close()

    def begin(agents: Agents, start: Callable[[str], Coroutine[Any, Any, StartedAgent]]) -> AgentPool:
        pools.append(
            AgentPool(tmp_path / "agents.json", agents, start, AgentSettings(idle_exit_s=7.0), 300.0)
        )
        return pools[-1]

    yield begin
    for each in pools:
        each.close()


async def test_an_earlier_agent_says_what_it_holds_while_the_next_one_starts(
    later: Callable[..., AgentPool],
) -> None:
    begun, started = asyncio.Event(), asyncio.Event()

    async def start(_: str) -> StartedAgent:
        begun.set()
        await started.wait()
        return AGENT

    pool = later(LiveAgent(), start)
    assert await asyncio.wait_for(pool.held_on("n"), allow_s(5)) == Holdings()
    await asyncio.wait_for(begun.wait(), allow_s(5))
    started.set()
    assert await pool.address("n") == AGENT.address


async def test_an_earlier_agent_serves_if_none_starts_with_the_settings_of_now(
    monkeypatch: pytest.MonkeyPatch, later: Callable[..., AgentPool]
) -> None:
    """A call does not try again each time, unless that agent has ended."""
    tries: list[str] = []

    async def start(node_id: str) -> StartedAgent:
        tries.append(node_id)
        raise BackendUnavailable("/nonexist/python cannot be run")

    live = LiveAgent()
    pool = later(live, start)
    for _ in range(3):
        assert await pool.address("n") == AGENT.address
    assert len(tries) == 1
    live.is_there = False
    await pool.address("n")
    assert len(tries) == 2
    live.is_there = True
    monkeypatch.setattr(agents, "_TRY_AGAIN_S", 0.0)
    await pool.address("n")
    assert len(tries) == 3
