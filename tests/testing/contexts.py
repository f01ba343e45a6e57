"""A function that builds a `BackendContext` as the service does."""

from __future__ import annotations

from pathlib import Path

from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import BackendContext
from roost.scheduler.config.settings import Settings


def backend_context(agents: Agents, folder: Path, settings: Settings | None = None) -> BackendContext:
    """Return a context with `settings`, or with the default settings if they are None."""
    settings = settings or Settings()
    return BackendContext(
        agents=agents,
        folder=folder,
        restart_grace_s=settings.restart_grace_s,
        idle_exit_s=settings.idle_exit_s,
    )
