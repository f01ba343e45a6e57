"""The entry point of the Kubernetes backend."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend
from roost.scheduler.backends.base import Backend, BackendContext
from roost.scheduler.backends.spec import describe_missing
from roost.scheduler.errors import BackendUnavailable, ConfigError

from .settings import RoostKubernetesBackend

if TYPE_CHECKING:
    from .cluster import KubernetesCluster

_CHECK_S = 5.0


def create(settings: RoostKubernetesBackend, context: BackendContext) -> Backend:
    """Return the backend. Raises `ConfigError` if the package `kubernetes` is missing."""
    return AgentPerKernelBackend(
        _create_cluster(settings),
        context.agents,
        linger_s=context.restart_grace_s,
        adds_nodes=settings.autoscale,
    )


def check(settings: RoostKubernetesBackend, request: Request) -> None:
    """Let the API server check the pod of such a request, in a dry run. See `BackendSpec.check`."""
    cluster = _create_cluster(settings)

    async def work() -> None:
        try:
            await asyncio.wait_for(cluster.check_pod(request), _CHECK_S)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Kubernetes does not answer within {_CHECK_S:g} s") from None
        finally:
            await cluster.close()

    asyncio.run(work())


def _create_cluster(settings: RoostKubernetesBackend) -> KubernetesCluster:
    try:
        from .cluster import KubernetesCluster
    except ModuleNotFoundError as problem:
        raise ConfigError(describe_missing("kubernetes", str(problem.name))) from None
    return KubernetesCluster(settings)
