"""A YARN cluster for the whole run, started by the first test that asks for it.

All tests share its nodes and leave them as they found them. A test that kills something starts its own `HadoopNodes`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.hadoop_nodes import MACHINES, HadoopNodes, gpus_of, why_not
from roost.testing.deadlines import until_blocking
from roost.testing.leftovers import describe

FREED_S = 180.0
"""How long YARN may take to free the resources of an ended application."""


def cluster_settings(cluster: HadoopNodes, folder: Path) -> dict[str, Any]:
    """Return the settings of a backend on this cluster. The backend's files are in `folder`."""
    return {
        "address": str(cluster.configuration),
        "python": sys.executable,
        "gpus_per_node": 4,  # none is real
        "identity_file": str(folder / "identity.json"),
    }


def container_of(pid: int) -> str:
    """Return the id of the YARN container that has a process: its own, or that of an ancestor."""
    process = psutil.Process(pid)
    for each in (process, *process.parents()):
        if container := each.environ().get("CONTAINER_ID"):
            return str(container)
    raise AssertionError(f"process {pid} is in no container")


def in_use(cluster: HadoopNodes, but: Collection[str] = ()) -> list[str]:
    """Return a line for each container that is not in `but`, each process there, and each node that promises one."""
    running = {row["id"]: node for node in cluster.machines for row in cluster.containers(node)}
    expected = Counter(node for container, node in running.items() if container in but)
    kept = {process.pid for container in but for process in cluster.container_processes(container=container)}
    return [
        *(f"container {container} on {node}" for container, node in running.items() if container not in but),
        *(
            f"{node} promises {row['numContainers']} containers and {gpus_of(row, 'usedResource')} GPUs"
            for node, row in cluster.nodes().items()
            if row["numContainers"] != expected[node]
        ),
        *(f"process {describe(each)}" for each in cluster.container_processes() if each.pid not in kept),
    ]


def left(cluster: HadoopNodes) -> list[str]:
    """Return a line for each application, container, promise and process in a container."""
    return [
        *(f"application {row['id']} {row['state']}" for row in cluster.applications()),
        *in_use(cluster),
    ]


def end_applications(cluster: HadoopNodes) -> None:
    """End the applications of earlier tests. roost's masters stay for a while after their services."""
    for row in cluster.applications():
        cluster.rest.call("PUT", f"/ws/v1/cluster/apps/{row['id']}/state", {"state": "KILLED"})
    assert_nothing_left(cluster)


def assert_nothing_left(cluster: HadoopNodes, within_s: float = FREED_S) -> None:
    """Wait until no application, container or process is left. Raise AssertionError with the rest after this time."""
    await_nothing(lambda: left(cluster), within_s)


def await_nothing(look: Callable[[], list[str]], within_s: float = FREED_S) -> None:
    """Wait until `look` returns no remains. The error after this time lists them."""
    found: list[str] = []

    def is_empty() -> bool:
        nonlocal found
        found = look()
        return not found

    until_blocking(is_empty, lambda: "left behind in YARN:\n" + "\n".join(found), within_s, 0.1)


@pytest.fixture(scope="session")
def yarn_cluster(private_environment: None) -> Iterator[HadoopNodes]:
    """Start three nodes of 8 GiB: nm1 with 4 vcores, nm2 with 4 and 2 T4, nm3 with 8, 4 A100 and zone=b."""
    if reason := why_not():
        pytest.skip(reason)
    with HadoopNodes(*MACHINES) as cluster:
        yield cluster
        folder = cluster.folder
    assert not cluster.processes()
    assert not folder.exists()
