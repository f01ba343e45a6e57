"""The entry point of the Dask backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_node.agents import AgentPool
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.base import BackendContext

from . import SPEC
from .manager import DaskManager
from .nodes import DaskNode
from .settings import RoostDaskBackend


def create(settings: RoostDaskBackend, context: BackendContext) -> AgentPerNodeBackend[DaskNode]:
    """Return the backend, which keeps `agents.json` in the context's folder."""
    manager = DaskManager(settings)
    return AgentPerNodeBackend(
        SPEC.name,
        manager,
        AgentPool(context.folder / "agents.json", context.agents, manager.start_agent),
        restart_grace_s=context.restart_grace_s,
        manager_grace_s=settings.manager_grace_s,
    )
