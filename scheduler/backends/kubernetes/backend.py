"""The entry point of the Kubernetes backend."""

from __future__ import annotations

import asyncio

from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend, PodGrowth
from roost.scheduler.backends.base import Backend, BackendContext
from roost.scheduler.backends.node_types import make_node_types
from roost.scheduler.errors import BackendUnavailable

from .api import Api
from .cluster import KubernetesCluster
from .settings import RoostKubernetesBackend

_CHECK_S = 5.0


def create(settings: RoostKubernetesBackend, context: BackendContext) -> Backend:
    """Return the backend."""
    return AgentPerKernelBackend(
        build_cluster(settings),
        context.agents,
        linger_s=context.restart_grace_s,
        growth=PodGrowth(make_node_types(settings.node_types)) if settings.autoscale else Backend.growth,
    )


def build_cluster(settings: RoostKubernetesBackend) -> KubernetesCluster:
    """Return the cluster that the settings name."""
    return KubernetesCluster(settings, Api(settings.address, settings.context))


def check(settings: RoostKubernetesBackend, request: Request) -> None:
    """Let the API server check the pod of such a request, in a dry run. See `BackendSpec.check`."""
    cluster = build_cluster(settings)

    async def work() -> None:
        try:
            await asyncio.wait_for(cluster.check_pod(request), _CHECK_S)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Kubernetes does not answer within {_CHECK_S:g} s") from None
        finally:
            await cluster.close()

    asyncio.run(work())
