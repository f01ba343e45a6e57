"""The entry point of the Kubernetes backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend
from roost.scheduler.backends.base import Backend, BackendContext

from .cluster import KubernetesCluster
from .settings import RoostKubernetesBackend


def create(settings: RoostKubernetesBackend, context: BackendContext) -> Backend:
    """Return the backend."""
    cluster = KubernetesCluster(settings)
    return AgentPerKernelBackend(
        cluster, context.agents, linger_s=context.restart_grace_s, adds_nodes=settings.autoscale
    )
