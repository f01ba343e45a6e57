"""A real service and agents for each module and backend. Each test must release everything that it took."""

from __future__ import annotations

import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kit.clusters.dask.shared_cluster import environment
from kit.clusters.docker.shared_cluster import cluster_settings as docker_settings
from kit.clusters.kubernetes.shared_cluster import cluster_settings
from kit.clusters.own_machines import OWN_PYTHONS
from kit.clusters.ssh.shared_cluster import cluster_settings as ssh_settings
from kit.clusters.yarn.shared_cluster import cluster_settings as yarn_settings
from kit.jupyter.kernelspecs import IPYKERNEL, kernelspecs
from kit.machine.daemons import settle
from roost.scheduler.client.client import Client, connect, disconnect
from roost.testing.deadlines import allow_s

BACKENDS = ("local", "ray", "dask", "dask_tls", "docker", "kubernetes", "yarn", "ssh")
FREED_S = 15.0
"""How long a cluster manager may show released resources as promised. A pod needs time to end."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses the fixture `backend` on all backends, or on those of its marker `backends`."""
    if "backend" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("backends")
        metafunc.parametrize("backend", marker.args if marker else BACKENDS, indirect=True, scope="module")


def _manager(backend: str) -> str:
    return {"dask_tls": "dask", "podman": "docker", "rootless": "docker"}.get(backend, backend)


def _configure(patch: pytest.MonkeyPatch, folder: Path, **sections: Mapping[str, object]) -> None:
    """Let services read these sections of settings, from a file in the folder."""
    folder.chmod(0o700)
    (folder / "jupyter_roost_config.json").write_text(json.dumps(sections))
    patch.setenv("JUPYTER_CONFIG_DIR", str(folder))


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the backend's name. Set the environment variables with which services find its cluster."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "ray":
            patch.setenv("RAY_ADDRESS", request.getfixturevalue("ray_cluster").address)
        elif request.param.startswith("dask"):
            for name, value in environment(request.getfixturevalue(f"{request.param}_cluster")).items():
                patch.setenv(name, value)
        elif request.param in ("docker", "podman", "rootless"):
            folder = tmp_path_factory.mktemp("docker", numbered=True)
            settings = docker_settings(request.getfixturevalue(f"{request.param}_cluster"), folder)
            _configure(patch, folder, RoostDockerBackend=settings)
            patch.setenv("DOCKER_HOST", settings["address"])
        elif request.param == "kubernetes":
            folder = tmp_path_factory.mktemp("kubernetes", numbered=True)
            settings = cluster_settings(request.getfixturevalue("kubernetes_cluster"), folder)
            _configure(patch, folder, RoostKubernetesBackend=settings)
            patch.setenv("KUBECONFIG", settings["address"])
        elif request.param == "yarn":
            folder = tmp_path_factory.mktemp("yarn", numbered=True)
            cluster = request.getfixturevalue("yarn_cluster")
            settings = yarn_settings(cluster, cluster.folder)  # all modules have one application master
            _configure(patch, folder, RoostYarnBackend=settings)
            patch.setenv("HADOOP_CONF_DIR", settings["address"])
        elif request.param == "ssh":
            folder = tmp_path_factory.mktemp("ssh", numbered=True)
            settings = ssh_settings(request.getfixturevalue("ssh_hosts"))
            _configure(patch, folder, RoostSshBackend=settings)
        yield _manager(request.param)


@pytest.fixture(scope="module")
def backend_runtime_dir(backend: str, module_runtime_dir: Path) -> Iterator[Path]:
    """Start the agents of all nodes and return the runtime folder. End this machine's service and agent at the end.

    Agents on the nodes of a cluster have a runtime folder of their own and end with the cluster.
    """
    connect(backend).up().result(allow_s(100))
    yield module_runtime_dir
    disconnect()
    settle(module_runtime_dir)


@pytest.fixture
def specs_of(
    backend: str, backend_runtime_dir: Path, tmp_path: Path
) -> Iterator[Callable[..., KernelSpecManager]]:
    """Yield a function that makes kernelspecs for this backend. Check at the end that nothing runs or is promised."""
    # Pods and containers have a Python of their own.
    changes = {"argv": ["python3", *IPYKERNEL[1:]]} if backend in OWN_PYTHONS else {}
    yield partial(kernelspecs, tmp_path, backend=backend, **changes)
    # jupyter_core keeps an event loop for each thread that called a blocking manager.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    service = connect(backend)
    end = time.monotonic() + min(allow_s(2), 8)  # a server may end before its last kernel has
    while left := service.kernels().result(allow_s(10)):
        assert time.monotonic() < end, left
        time.sleep(0.05)
    deadline = time.monotonic() + allow_s(FREED_S)
    free = 1.0 if backend == "yarn" else 0.0  # the application master has a CPU
    while sum((held := _promised(service)).values()) > free:
        assert time.monotonic() < deadline, f"promised without a kernel: {held}"


@pytest.fixture
def settled_runtime_dir(runtime_dir: Path) -> Iterator[Path]:
    """Yield a runtime folder of this test alone. The service and the agent in it end with the test."""
    yield runtime_dir
    disconnect()
    settle(runtime_dir)


@pytest.fixture(scope="module")
def one_gpu(module_runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder for notebooks, on a machine with one GPU and a kernelspec `gpu` that asks for it."""
    folder = tmp_path_factory.mktemp("waiting")
    settings = {
        "RoostLocalBackend": {"gpus": 1, "gpu_model": "T4", "cpus": 8, "memory": "64GiB"},
        "RoostScheduler": {"restart_grace_s": 0.5},
    }
    (folder / "jupyter_roost_config.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        patch.setenv("JUPYTER_PATH", str(folder))
        kernelspecs(folder, "gpu", config={"gpus": 1})
        plain = {"metadata": {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}}
        kernelspecs(folder, "plain", **plain)
        connect("local").up().result(allow_s(60))
        yield folder
        disconnect()
        settle(module_runtime_dir)


def _promised(service: Client) -> dict[str, float]:
    """Return the promised CPUs of each node, by node id."""
    return {node["id"]: node["cpus_promised"] for node in service.nodes().result(allow_s(10))}


@pytest.fixture
def specs(specs_of: Callable[..., KernelSpecManager]) -> KernelSpecManager:
    """Return a KernelSpecManager with the kernelspec `roosted`, an ipykernel that roost starts."""
    return specs_of()


@pytest.fixture
def on_an_a100(specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for notebooks, where the kernelspec `roosted` asks for an A100."""
    specs_of(config={"gpus": 1, "gpu_models": ["A100"]})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return tmp_path
