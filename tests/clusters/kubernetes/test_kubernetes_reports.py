"""Agents in pods that report their addresses, and a service that they cannot reach."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.kubelets import Kubelets
from kit.clusters.kubernetes.shared_cluster import cluster_settings
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel.address_reports import AddressReports
from roost.scheduler.backends.kubernetes import pod_state
from roost.scheduler.backends.kubernetes.backend import create
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.testing import BackendContract, backend_context, open_backend

STEPS = BackendContract()


def service(cluster: Kubelets, folder: Path, **more: Any) -> AbstractAsyncContextManager[Any]:
    """Return a context manager that opens the Kubernetes backend, as a service does."""
    settings = RoostKubernetesBackend(**cluster_settings(cluster, folder), **more)
    return open_backend(lambda agents: create(settings, backend_context(agents, folder)))


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each address that an agent reports is added."""
    ips: list[str] = []
    on_report = AddressReports._listens

    def listens(self: AddressReports, ip: str, port: int) -> None:
        on_report(self, ip, port)
        ips.append(ip)

    monkeypatch.setattr(AddressReports, "_listens", listens)
    return ips


async def test_a_lease_is_held_before_kubernetes_tells_the_address(
    kubernetes_cluster: Kubelets,
    module_runtime_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[str],
) -> None:
    """Kubernetes never reports an address here. The agent reports its own, and the service keeps it."""
    monkeypatch.setattr(pod_state, "_read_address", lambda *_: None)
    async with service(kubernetes_cluster, module_runtime_dir) as (backend, agents):
        lease = await STEPS.take(backend, "k", Request(cpus=0.1))
        client = await agents.client(await backend.agent(lease))
        assert [one.id for one in (await client.holdings()).leases] == [lease.id]
        (ip,) = set(reported)
        assert ip in client.endpoint
        await backend.release(lease)


async def test_a_kernel_starts_if_agents_cannot_reach_the_service(
    kubernetes_cluster: Kubelets, module_runtime_dir: Path, reported: list[str]
) -> None:
    async with service(kubernetes_cluster, module_runtime_dir, report_address="127.0.0.1") as (
        backend,
        agents,
    ):
        lease = await STEPS.take(backend, "k", Request(cpus=0.1))
        client = await agents.client(await backend.agent(lease))
        assert [one.id for one in (await client.holdings()).leases] == [lease.id]
        await backend.release(lease)
    assert not reported


async def test_reports_can_be_switched_off(
    kubernetes_cluster: Kubelets, module_runtime_dir: Path, reported: list[str]
) -> None:
    async with service(kubernetes_cluster, module_runtime_dir, report_address="") as (backend, _):
        lease = await STEPS.take(backend, "k", Request(cpus=0.1))
        await backend.release(lease)
    assert not reported
