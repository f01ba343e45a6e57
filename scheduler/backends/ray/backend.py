"""The entry point of the Ray backend."""

from __future__ import annotations

from pathlib import Path

from roost.scheduler.backends.agent_per_node.agents import AgentPool
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.agent_calls import Agents

from .manager import RayManager
from .nodes import RayNode


def create(settings: Settings, agents: Agents, *, folder: Path) -> AgentPerNodeBackend[RayNode]:
    """Return the backend. `folder` is for `agents.json`."""
    manager = RayManager(settings.ray)
    return AgentPerNodeBackend(
        "ray",
        manager,
        AgentPool(folder / "agents.json", agents, manager.start_agent),
        restart_grace_s=settings.restart_grace_s,
        manager_grace_s=settings.ray.manager_grace_s,
    )
