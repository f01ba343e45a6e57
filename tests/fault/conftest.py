"""A runtime folder for each fault test. At the test's end all processes end in order, and nothing may be left."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.provisioning.factory import KernelProvisionerFactory

import roost
from kit.clusters.contention import SCHEDULERS
from kit.clusters.docker.faults import DockerWorld
from kit.clusters.docker.shared_cluster import started
from kit.clusters.docker_engine import DockerEngine
from kit.clusters.faults import show_logs
from kit.clusters.hadoop_nodes import HadoopNodes, Machine
from kit.clusters.hadoop_nodes import why_not as why_no_yarn
from kit.clusters.kubelets import Kubelets, why_not
from kit.clusters.kubernetes.faults import MACHINES, KubernetesWorld, prepare
from kit.clusters.ssh.faults import SshWorld
from kit.clusters.ssh.shared_cluster import COUNT, RULES
from kit.clusters.ssh_hosts import SshHosts, leftovers
from kit.clusters.ssh_hosts import why_not as why_no_ssh
from kit.clusters.yarn.faults import MACHINES as YARN_MACHINES
from kit.clusters.yarn.faults import OpenYarnWorld, YarnWorld, fault_settings, opened
from kit.machine.daemons import agent_folder, settle
from roost.scheduler.client.client import Client, disconnect
from roost.testing.leftovers import private_runtime_dir

OWNER_GRACE_S = 1.0
"""How long the service of `short_owner_grace` waits for an owner that has ended."""


@pytest.fixture
def short_owner_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Configure the service so that the kernels of an ended owner end after OWNER_GRACE_S. Return that time."""
    config = tmp_path / "config"
    config.mkdir()
    settings = {"RoostScheduler": {"owner_grace_s": OWNER_GRACE_S}}
    (config / "jupyter_roost_config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(config))
    return OWNER_GRACE_S


@pytest.fixture
def settled_runtime_dir(runtime_dir: Path) -> Iterator[Path]:
    yield runtime_dir
    settle(runtime_dir)
    agent = agent_folder(runtime_dir)
    if agent.exists():
        assert not list((agent / "kernels").iterdir()), "files of kernels left"
        assert not list((agent / "leases").iterdir()), "leases left"


@pytest.fixture
def client(settled_runtime_dir: Path) -> Iterator[Client]:
    connected = roost.connect("local", gpus=2)
    yield connected
    connected.close()


@pytest.fixture
def roost_by_default(settled_runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start kernels of the ordinary `python3` kernelspec through roost."""
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "roost")
    KernelProvisionerFactory.clear_instance()  # it reads the variable once, perhaps in an earlier test
    yield
    KernelProvisionerFactory.clear_instance()


@pytest.fixture
def users_runtime_dirs() -> Iterator[list[str]]:
    """Return a runtime folder for each user's service."""
    with ExitStack() as stack:
        folders = [stack.enter_context(private_runtime_dir()) for _ in range(SCHEDULERS)]
        yield folders
        for folder in folders:
            settle(Path(folder))


@pytest.fixture(scope="module")
def kubelets(private_environment: None) -> Iterator[Kubelets]:
    """Start a Kubernetes cluster for one test module, whose tests kill parts of the cluster."""
    if reason := why_not():
        pytest.skip(reason)
    with private_runtime_dir(), Kubelets(*MACHINES) as started:
        prepare(started)
        yield started


@pytest.fixture(scope="module")
def docker_engine(private_environment: None) -> Iterator[DockerEngine]:
    """Start an engine for one test module, whose tests kill it."""
    yield from started("dockerd")


@pytest.fixture(scope="module")
def podman_engine(private_environment: None) -> Iterator[DockerEngine]:
    yield from started("podman")


@pytest.fixture(scope="module")
def rootless_engine(private_environment: None) -> Iterator[DockerEngine]:
    yield from started("rootless")


@pytest.fixture
def engine_of_world() -> str:
    """Return the name of the fixture with the engine of `docker_world`."""
    return "docker_engine"


@pytest.fixture
async def docker_world(
    runtime_dir: Path,
    engine_of_world: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[DockerWorld]:
    world = DockerWorld(request.getfixturevalue(engine_of_world), runtime_dir, tmp_path, monkeypatch)
    yield world
    try:
        with show_logs(runtime_dir):
            await world.close()
    finally:
        disconnect()
        settle(runtime_dir)


@pytest.fixture
async def kubernetes_world(
    runtime_dir: Path, kubelets: Kubelets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubernetesWorld]:
    world = KubernetesWorld(kubelets, runtime_dir, tmp_path, monkeypatch)
    with world.proxy:
        yield world
        try:
            with show_logs(runtime_dir):
                await world.close()
        finally:
            disconnect()
            settle(runtime_dir)


@pytest.fixture(scope="module")
def hadoop_nodes(
    private_environment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HadoopNodes]:
    """Start a YARN cluster for one test module, whose tests kill parts of the cluster."""
    if reason := why_no_yarn():
        pytest.skip(reason)
    settings = fault_settings(tmp_path_factory.mktemp("hadoop"))
    with private_runtime_dir(), HadoopNodes(*YARN_MACHINES, settings=settings) as started:
        yield started


@pytest.fixture
async def yarn_world(
    runtime_dir: Path, hadoop_nodes: HadoopNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[YarnWorld]:
    async with opened(YarnWorld(hadoop_nodes, runtime_dir, tmp_path, monkeypatch)) as world:
        yield world


@pytest.fixture
def open_yarn_world(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_environment: None
) -> OpenYarnWorld:
    """Return a function that starts a YARN cluster with settings and machines (by default two), and roost on it."""
    if reason := why_no_yarn():
        pytest.skip(reason)

    @asynccontextmanager
    async def start(
        settings: dict[str, object], *machines: Machine, has_standby: bool = False, **own: Any
    ) -> AsyncIterator[YarnWorld]:
        changes = {**fault_settings(tmp_path), **settings}
        nodes = machines or (Machine(vcores=4), Machine(vcores=4))
        with HadoopNodes(*nodes, settings=changes, has_standby=has_standby) as cluster:
            async with opened(YarnWorld(cluster, runtime_dir, tmp_path, monkeypatch, **own)) as world:
                yield world

    return start


@pytest.fixture(scope="module")
def fault_hosts(private_environment: None) -> Iterator[SshHosts]:
    """Start three SSH hosts for one test module, whose tests kill parts of them and turn them off."""
    if reason := why_no_ssh(COUNT):
        pytest.skip(reason)
    with SshHosts(COUNT, rules=RULES) as hosts:
        yield hosts
    assert not leftovers(hosts.folder)


@pytest.fixture
async def ssh_world(
    runtime_dir: Path, fault_hosts: SshHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SshWorld]:
    world = SshWorld(fault_hosts, runtime_dir, tmp_path, monkeypatch)
    try:
        with show_logs(runtime_dir):
            yield world
            await world.close()
    finally:
        disconnect()
        settle(runtime_dir)
