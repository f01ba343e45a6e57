"""The promises of every backend (`backends/base.py`), tested on real clusters.

Each cluster has a node with at least 2 CPUs and exactly 2 T4, all free. A test leaves nothing behind. For another
backend, extend the fixtures `kind` and `opener_of_kind`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.dask.shared_cluster import tls_files
from kit.clusters.docker.shared_cluster import cluster_settings as docker_settings
from kit.clusters.kubernetes.shared_cluster import cluster_settings
from kit.clusters.own_machines import OWN_PYTHONS
from kit.clusters.ray.faults import RayFaults
from kit.clusters.ssh.shared_cluster import cluster_settings as ssh_settings
from kit.clusters.ssh_hosts import why_not as why_no_hosts
from kit.clusters.yarn.shared_cluster import cluster_settings as yarn_settings
from kit.machine.daemons import agent_folder
from roost.launchers.daemon import daemon
from roost.placement import Request
from roost.scheduler.backends.base import Lease
from roost.scheduler.backends.dask import manager as dask
from roost.scheduler.backends.dask.settings import RoostDaskBackend
from roost.scheduler.backends.docker.backend import create as create_docker
from roost.scheduler.backends.docker.cluster import DockerCluster
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.scheduler.backends.kubernetes.backend import create as create_kubernetes
from roost.scheduler.backends.kubernetes.cluster import KubernetesCluster
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.backends.local.backend import LocalBackend
from roost.scheduler.backends.local.settings import RoostLocalBackend
from roost.scheduler.backends.ray import join
from roost.scheduler.backends.ray import manager as ray
from roost.scheduler.backends.ray.settings import RoostRayBackend
from roost.scheduler.backends.ssh.backend import create as create_ssh
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.scheduler.backends.yarn.backend import create as create_yarn
from roost.scheduler.backends.yarn.cluster import YarnCluster
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.errors import ConfigError
from roost.testing import BackendContract, LeaseContract, backend_context, open_backend
from roost.testing.contract import Opener
from roost.testing.contract_steps import name_kernel
from roost.testing.deadlines import allow_s
from roost.testing.faults import Faults
from roost.testing.local_faults import LocalFaults
from roost.testing.node_faults import NodeFaults
from roost.testing.pod_faults import PodFaults

T4 = Callable[..., Request]


def end_local(runtime_dir: Path) -> None:
    if (announced := daemon.read_announcement(agent_folder(runtime_dir))) is not None:  # else it has left
        os.kill(announced["pid"], signal.SIGTERM)


async def start_master(opener: Opener) -> None:
    """Start roost's application master, so that it has taken its CPU from a node before the tests."""
    async with opener() as (backend, _):
        await backend.warm_up()


@pytest.fixture(
    params=["local", "ray", "dask", "dask_tls", "docker", "podman", "kubernetes", "yarn", "ssh"],
    scope="module",
)
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of a backend. `dask_tls` is the Dask backend on an encrypted cluster."""
    return str(request.param)


@pytest.fixture(scope="module")
def opener_of_kind(kind: str, request: pytest.FixtureRequest, module_runtime_dir: Path) -> Iterator[Opener]:
    """Return a function that opens the backend. A second call opens the backend as another process would."""
    if kind == "local":
        local = RoostLocalBackend(cpus=2, memory=1 << 30, gpus=2, gpu_model="T4")
        yield partial(
            open_backend, lambda agents: LocalBackend(local, backend_context(agents, module_runtime_dir))
        )
        end_local(module_runtime_dir)
        return
    cluster = request.getfixturevalue("ssh_hosts" if kind == "ssh" else f"{kind}_cluster")
    folder = module_runtime_dir / f"backend_{kind}"
    folder.mkdir(mode=0o700)
    if kind == "ray":
        at_ray = RoostRayBackend(address=cluster.address)
        yield partial(open_backend, lambda agents: ray.create(at_ray, backend_context(agents, folder)))
        join.leave()
        return
    if kind in ("docker", "podman"):
        at_engine = RoostDockerBackend(**docker_settings(cluster, module_runtime_dir))
        yield partial(open_backend, lambda agents: create_docker(at_engine, backend_context(agents, folder)))
        return
    if kind == "kubernetes":
        at_kubernetes = RoostKubernetesBackend(**cluster_settings(cluster, module_runtime_dir))
        yield partial(
            open_backend, lambda agents: create_kubernetes(at_kubernetes, backend_context(agents, folder))
        )
        return
    if kind == "yarn":
        at_yarn = RoostYarnBackend(**yarn_settings(cluster, cluster.folder))
        opener = partial(open_backend, lambda agents: create_yarn(at_yarn, backend_context(agents, folder)))
        asyncio.run(start_master(opener))
        yield opener
        return
    if kind == "ssh":
        if reason := why_no_hosts(2):
            pytest.skip(reason)
        at_hosts = RoostSshBackend(**ssh_settings(cluster))
        yield partial(open_backend, lambda agents: create_ssh(at_hosts, backend_context(agents, folder)))
        return
    at_dask = RoostDaskBackend(address=cluster.address, **tls_files(cluster))
    yield partial(open_backend, lambda agents: dask.create(at_dask, backend_context(agents, folder)))


@pytest.fixture(autouse=True)
def late_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The managers of a busy machine decide late. A claim that is undecided by then would count as one or the other."""
    for name, seconds in {
        "kubernetes.creation._DECIDED_S": 10.0,
        "yarn.creation._MARGIN_S": 0.5,
        "ray.placement_groups._DECIDES_S": 3.0,
        "dask.join._CONNECT_S": 3.0,
        "dask.join._ANSWER_S": 5.0,
    }.items():
        monkeypatch.setattr(f"roost.scheduler.backends.{name}", allow_s(seconds))


@pytest.fixture
def t4(kind: str) -> T4:
    """Return a function that builds a request for T4 GPUs, which are a custom resource on Dask.

    Podman gives no GPUs. There, half of the memory is in the place of a GPU.
    """

    def ask(gpus: float, **more: Any) -> Request:
        if kind == "podman":
            return Request(**{"memory_bytes": int(gpus * psutil.virtual_memory().total / 2), **more})
        if kind not in ("dask", "dask_tls"):
            return Request(gpus=gpus, gpu_models=("T4",), **more)
        return Request(gpus=gpus, resources={"T4": gpus}, **more)

    return ask


class TestBackend(BackendContract):
    """The whole contract suite, for each real backend."""

    @pytest.fixture
    def opener(self, opener_of_kind: Opener) -> Opener:
        return opener_of_kind

    @pytest.fixture
    def scarce(self, t4: T4) -> T4:
        return t4

    @pytest.fixture
    def kernel_python(self, kind: str) -> str:
        return "python3" if kind in (*OWN_PYTHONS, "podman") else sys.executable

    async def test_a_share_of_a_gpu_is_granted_once(self, kind: str, opener: Opener, t4: T4) -> None:
        async with opener() as (backend, _):
            if kind == "podman":
                pytest.skip("Podman gives no GPUs through Docker's interface")
            if kind in ("docker", "kubernetes", "yarn"):
                with pytest.raises(ConfigError, match="whole GPUs only"):
                    backend.check_request(t4(0.6))
                return
            placement = await self.find_room(backend, t4(2))
            kernels = map(name_kernel, ("one", "two", "three"))
            outcomes = [await self.timed_claim(backend, each, t4(0.6), placement) for each in kernels]
            granted = [outcome for outcome, _ in outcomes if isinstance(outcome, Lease)]
            assert len(granted) == 2
            for lease in granted:
                await self.release(backend, lease)


class TestLeases(LeaseContract):
    """The contract about late, missing and wrong news of leases, for each real backend.

    The cluster managers are real. The faults lie between them and roost.
    """

    @pytest.fixture
    def opener(self, opener_of_kind: Opener) -> Opener:
        return opener_of_kind

    @pytest.fixture
    def faults_of_backend(self, kind: str) -> Faults:
        if kind in ("local", "ssh"):
            return LocalFaults()
        if kind == "ray":
            return RayFaults()
        if kind in ("dask", "dask_tls"):
            return NodeFaults(dask.DaskManager)
        clusters = {
            "docker": DockerCluster,
            "podman": DockerCluster,
            "kubernetes": KubernetesCluster,
            "yarn": YarnCluster,
        }
        return PodFaults(clusters[kind])

    @pytest.fixture
    def kernel_python(self, kind: str) -> str:
        return "python3" if kind in (*OWN_PYTHONS, "podman") else sys.executable
