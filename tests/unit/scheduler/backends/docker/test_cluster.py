"""The reason of an end, when the agent reports it before the engine does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import dump_lease
from roost.scheduler.backends.docker import cluster as cluster_module
from roost.scheduler.backends.docker.cluster import DockerCluster
from roost.scheduler.backends.docker.container_state import STOPPED
from roost.scheduler.backends.docker.engine import Engine
from roost.scheduler.backends.docker.names import LEASE_LABEL, SERVICE_LABEL
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.testing.deadlines import allow_s

LEASE = Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(), node_id="here")
RUNNING = {"Id": "c1", "State": "running", "Names": ["/roost-ada-1"], "Labels": {}}


class FakeEngine(Engine):
    """An engine with one container, which runs."""

    async def call(self, work: Callable[[Any], Any]) -> Any:
        return work(SimpleNamespace(containers=lambda **_: [RUNNING]))


@pytest.fixture
def cluster(tmp_path: Path) -> DockerCluster:
    tmp_path.chmod(0o700)
    settings = RoostDockerBackend(identity_file=str(tmp_path / "identity.json"))
    return DockerCluster(settings, FakeEngine("unix:///nowhere"))


async def test_a_stop_that_the_engine_reports_late_is_the_reason(
    cluster: DockerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_ENDS_S", 60.0)
    explaining = asyncio.create_task(cluster.explain_end(LEASE.id))
    await asyncio.sleep(0.01)
    assert not explaining.done()
    labels = {
        LEASE_LABEL: dump_lease(LEASE),
        SERVICE_LABEL: cluster._key_pair.label,
        "name": "roost-ada-1",
        "signal": "15",
    }
    await cluster._read_event({"Action": "kill", "Actor": {"ID": "c1", "Attributes": labels}})
    assert await asyncio.wait_for(explaining, allow_s(60)) == STOPPED


async def test_a_container_that_runs_on_has_no_reason(
    cluster: DockerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_ENDS_S", 0.01)
    assert await asyncio.wait_for(cluster.explain_end(LEASE.id), allow_s(60)) == ""
