"""The entry point of the Kubernetes backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend
from roost.scheduler.backends.base import Backend, BackendContext
from roost.scheduler.backends.spec import describe_missing
from roost.scheduler.errors import ConfigError

from .settings import RoostKubernetesBackend


def create(settings: RoostKubernetesBackend, context: BackendContext) -> Backend:
    """Return the backend. Raises `ConfigError` if the package `kubernetes` is missing."""
    try:
        from .cluster import KubernetesCluster
    except ModuleNotFoundError as problem:
        raise ConfigError(describe_missing("kubernetes", str(problem.name))) from None
    cluster = KubernetesCluster(settings)
    return AgentPerKernelBackend(
        cluster, context.agents, linger_s=context.restart_grace_s, adds_nodes=settings.autoscale
    )
