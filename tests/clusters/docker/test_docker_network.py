"""Containers on the network of docs/docker.md: this machine reaches them, and they do not reach each other."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest

from kit.clusters.docker.shared_cluster import cluster_settings
from kit.clusters.docker_engine import DockerEngine
from kit.clusters.docker_engine.engine import SEPARATE
from roost.launchers.protocol.messages import Lease
from roost.placement import Request
from roost.scheduler.backends.base import Backend
from roost.scheduler.backends.docker.backend import create
from roost.scheduler.backends.docker.names import name_container
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.testing import backend_context, open_backend
from roost.testing.contract_steps import OWNER, ContractSteps, Opener, name_kernel
from roost.testing.deadlines import allow_s

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    print("open")
except OSError:
    print("closed")
"""


async def find_agent(backend: Backend, lease: Lease) -> tuple[str, int]:
    """Return the host and the port of a lease's agent."""
    host, _, port = (await backend.agent(lease)).endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


class TestNetworks(ContractSteps):
    @pytest.fixture(params=["bridge", SEPARATE])
    def network(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def opener(self, network: str, docker_cluster: DockerEngine, tmp_path: Path) -> Opener:
        tmp_path.chmod(0o700)
        settings = RoostDockerBackend(**{**cluster_settings(docker_cluster, tmp_path), "network": network})
        return partial(open_backend, lambda agents: create(settings, backend_context(agents, tmp_path)))

    async def test_containers_reach_each_other_on_the_bridge_alone(
        self, network: str, opener: Opener, docker_cluster: DockerEngine
    ) -> None:
        async with opener() as (backend, _):
            leases = [await self.take(backend, each, Request()) for each in map(name_kernel, ("one", "two"))]
            first, second = [await find_agent(backend, lease) for lease in leases]
            for address in (first, second):
                socket.create_connection(address, timeout=allow_s(5)).close()
            container = name_container(OWNER.user, leases[1].id)

            def find_state(host: str, port: int) -> str:
                command = ("python3", "-c", CONNECT, host, str(port))
                return docker_cluster.run("exec", container, *command).strip()

            assert find_state(*second) == "open"
            assert find_state(*first) == ("open" if network == "bridge" else "closed")
            for lease in leases:
                await self.release(backend, lease)
