"""The agents of a cluster, as the service keeps them over its restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.rpc import ClientKeys
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_node import agents
from roost.scheduler.backends.agent_per_node.agents import AgentPool
from roost.scheduler.backends.agent_per_node.manager import StartedAgent
from roost.scheduler.backends.base import AgentAddress

AGENT = StartedAgent(
    address=AgentAddress(endpoint="tcp://h:1", keys=ClientKeys(server="s", public="p", secret="x")),
    daemon="d",
)


@pytest.mark.parametrize("changed", ["", "settings", "grace", "version"])
async def test_an_agent_is_found_again_before_a_call_if_its_settings_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Also if only roost's version has changed, or the time for which it keeps kernels without the cluster."""
    found: list[str] = []

    async def start(node_id: str) -> StartedAgent:
        found.append(node_id)
        return AGENT

    pool = AgentPool(tmp_path / "agents.json", Agents(), start, AgentSettings(), 300.0)
    assert await pool.address("n") == AGENT.address
    pool.close()
    if changed == "version":
        monkeypatch.setattr(agents, "VERSION", "99.0")
    settings = AgentSettings(idle_exit_s=7.0) if changed == "settings" else AgentSettings()
    later = AgentPool(
        tmp_path / "agents.json", Agents(), start, settings, 15.0 if changed == "grace" else 300.0
    )
    assert await later.address("n") == AGENT.address
    assert found == (["n", "n"] if changed else ["n"])
    await asyncio.sleep(0)  # the file is written
    later.close()
