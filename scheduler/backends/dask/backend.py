"""The entry point of the Dask backend."""

from __future__ import annotations

from pathlib import Path

from roost.scheduler.backends.agent_per_node.agents import AgentPool
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.agent_calls import Agents

from .manager import DaskManager
from .nodes import DaskNode


def create(settings: Settings, agents: Agents, *, folder: Path) -> AgentPerNodeBackend[DaskNode]:
    """Return the backend. `folder` is for `agents.json`."""
    manager = DaskManager(settings.dask)
    return AgentPerNodeBackend(
        "dask",
        manager,
        AgentPool(folder / "agents.json", agents, manager.start_agent),
        restart_grace_s=settings.restart_grace_s,
        manager_grace_s=settings.dask.manager_grace_s,
    )
