"""The clusters of the tests leave nothing on this machine if their owner is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit import TESTS
from kit.clusters import docker_engine, hadoop_nodes, kubelets, ssh_hosts
from roost.testing.clusters import dask_machines, raylets
from roost.testing.clusters.cluster_folder import processes, wait_until
from roost.testing.deadlines import allow_s

OWNER = """
import contextlib, sys, psutil
from {module} import *
from roost.testing.clusters.cluster_folder import wait_until
with {start} as cluster:
    {then}
    print(cluster.folder, flush=True)
    sys.stdin.read()
"""
RUNS_A_DETACHED_PROCESS = """
    new = cluster.rest.call("POST", "/ws/v1/cluster/apps/new-application")["application-id"]
    detach = "cd /; setsid --fork sleep 1000; timeout 1 tail -f /dev/null"
    context = {"application-id": new, "application-name": "test", "resource": {"memory": 256, "vCores": 1}}
    context |= {"am-container-spec": {"commands": {"command": detach}}, "max-app-attempts": 1}
    cluster.rest.call("POST", "/ws/v1/cluster/apps", context)
    def is_detached():
        with contextlib.suppress(psutil.NoSuchProcess):
            return any(each.name() == "sleep" for each in cluster.processes())
    wait_until(is_detached, "the container does not run", timeout_s=60)
"""
"""YARN kills the process group of a container when its shell ends. This `sleep` has left the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """How a cluster starts in a process of its own, and what is on this machine meanwhile and afterwards."""

    module: str
    start: str
    then: str = ""
    """What the owner does on the cluster."""
    why_not: Callable[[], str | None]
    left: Callable[[Path], list[str]]
    """Return a line for each thing that is left of the cluster with this folder. Its first word is the kind."""
    has: frozenset[str] = frozenset({"process", "folder"})
    """The kinds of things that a running cluster has on this machine."""
    may_have: frozenset[str] = frozenset()
    stays: frozenset[str] = frozenset()
    """The kinds that only the next start removes."""
    again: Callable[[], AbstractContextManager[object]] = nullcontext
    """Return the next cluster."""
    ends_s: float = 60.0


def left_of(folder: Path) -> list[str]:
    """Return what is left of a cluster of daemons."""
    found = [f"process {process.pid}" for process in processes(folder)]
    return found + ([f"folder {folder}"] if folder.exists() else [])


CLUSTERS: Mapping[str, Cluster] = {
    "ray": Cluster(
        module=raylets.__name__, start="Raylets(Machine())", why_not=raylets.why_not, left=left_of
    ),
    "dask": Cluster(
        module=dask_machines.__name__,
        start="DaskMachines(Machine())",
        why_not=dask_machines.why_not,
        left=left_of,
        ends_s=20.0,
    ),
    "docker": Cluster(
        module=docker_engine.__name__,
        start="DockerEngine()",
        then='cluster.run("run", "--detach", IMAGE, "sleep", "1000")',
        why_not=docker_engine.why_not,
        left=docker_engine.leftovers,
        has=frozenset({"process", "folder", "device"}),
        may_have=frozenset({"control", "mount"}),
        stays=frozenset({"control", "folder"}),
        again=docker_engine.DockerEngine,
    ),
    "kubernetes": Cluster(
        module=kubelets.__name__,
        start="Kubelets(Machine())",
        why_not=kubelets.why_not,
        left=kubelets.leftovers,
        may_have=frozenset({"cgroup", "device", "mount"}),
        ends_s=15.0,
    ),
    "yarn": Cluster(
        module=hadoop_nodes.__name__,
        start="HadoopNodes(Machine())",
        then=RUNS_A_DETACHED_PROCESS,
        why_not=hadoop_nodes.why_not,
        left=left_of,
    ),
    "ssh": Cluster(
        module=ssh_hosts.__name__,
        start="SshHosts(1)",
        why_not=lambda: ssh_hosts.why_not(2),
        left=ssh_hosts.leftovers,
        has=frozenset({"process", "folder", "device"}),
        stays=frozenset({"folder"}),
        again=lambda: ssh_hosts.SshHosts(1, accounts=["ada"]),
    ),
}


@pytest.fixture
def cluster(kind: str) -> Cluster:
    if reason := CLUSTERS[kind].why_not():
        pytest.skip(reason)
    return CLUSTERS[kind]


@contextmanager
def owner_of(cluster: Cluster) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Start a process that owns a cluster. Yield the process, and the cluster's folder."""
    program = OWNER.format(module=cluster.module, start=cluster.start, then=cluster.then)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        assert folder, "the cluster does not start"
        yield owner, Path(folder)


def kinds_of(lines: list[str]) -> set[str]:
    return {line.partition(" ")[0] for line in lines}


@pytest.mark.parametrize(
    "kind",
    ["ray", "dask", "docker", pytest.param("kubernetes", marks=pytest.mark.long), "yarn", "ssh"],
)
def test_nothing_outlives_a_killed_owner(cluster: Cluster) -> None:
    with owner_of(cluster) as (owner, folder):
        found = kinds_of(cluster.left(folder))
        assert cluster.has <= found <= cluster.has | cluster.may_have
        owner.kill()
        wait_until(
            lambda: kinds_of(cluster.left(folder)) <= cluster.stays,
            "the cluster outlives its owner",
            timeout_s=allow_s(cluster.ends_s),
        )
    with cluster.again():
        assert cluster.left(folder) == []
