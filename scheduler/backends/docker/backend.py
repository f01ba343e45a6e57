"""The entry point of the Docker backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend
from roost.scheduler.backends.base import Backend, BackendContext

from .cluster import DockerCluster
from .engine import Engine
from .settings import RoostDockerBackend, find_address


def create(settings: RoostDockerBackend, context: BackendContext) -> Backend:
    """Return the backend. Raises `ConfigError` for an address that is no socket of this machine."""
    cluster = DockerCluster(settings, Engine(find_address(settings.address)))
    return AgentPerKernelBackend(cluster, context.agents, linger_s=context.restart_grace_s)
