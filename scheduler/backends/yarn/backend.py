"""The entry point of the YARN backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend, PodGrowth
from roost.scheduler.backends.base import Backend, BackendContext

from .cluster import YarnCluster
from .rest import Rest
from .settings import RoostYarnBackend


def create(settings: RoostYarnBackend, context: BackendContext) -> Backend:
    """Return the backend. Raises `ConfigError` if the address of the cluster is missing."""
    cluster = YarnCluster(settings, Rest(settings), context.idle_exit_s)
    # A request that no node can take now waits in YARN's own queues, where fairness and preemption see it.
    return AgentPerKernelBackend(
        cluster, context.agents, linger_s=context.restart_grace_s, growth=PodGrowth()
    )
