"""The entry point of the Ray backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_node.agents import AgentPool
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.base import BackendContext

from . import SPEC
from .manager import RayManager
from .nodes import RayNode
from .settings import RoostRayBackend


def create(settings: RoostRayBackend, context: BackendContext) -> AgentPerNodeBackend[RayNode]:
    """Return the backend, which keeps `agents.json` in the context's folder."""
    manager = RayManager(settings)
    return AgentPerNodeBackend(
        SPEC.name,
        manager,
        AgentPool(context.folder / "agents.json", context.agents, manager.start_agent),
        restart_grace_s=context.restart_grace_s,
        manager_grace_s=settings.manager_grace_s,
    )
