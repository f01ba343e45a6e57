"""A real Ray cluster that starts without worker nodes, and what tests ask about its growth."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.machine.daemons import settle
from roost.provisioners.server_extension.cluster_page import read_cluster
from roost.scheduler.backends.ray import join, nodes, placement_groups
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.client.running_services import find_services
from roost.scheduler.messages import Event
from roost.testing.clusters.raylets import Machine
from roost.testing.deadlines import allow_s, until_blocking
from roost.testing.leftovers import VARIABLE

from .elastic_raylets import ElasticRaylets

IDLE_S = 3.0
"""How long a node without work stays."""
TYPES = {"gpu": (Machine(cpus=2, gpus=2, gpu_model="A100"), 2), "cpu": (Machine(cpus=8), 1)}


class Elastic:
    """A cluster without worker nodes, the service's client, and the service's events."""

    def __init__(self, cluster: ElasticRaylets) -> None:
        self.cluster = cluster
        self.client: Client = connect("ray")
        self.events: list[Event] = []
        self._stop = self.client.listen(self.events.append)
        self._before = len(cluster.launches())

    @property
    def head(self) -> str:
        return self.cluster.address.partition(":")[0]

    def close(self) -> None:
        self._stop()

    def launched(self) -> list[str]:
        """Return the types of the nodes that the autoscaler has started in this test."""
        return [each.node_type for each in self.cluster.launches()[self._before :] if each.what == "launch"]

    def reasons(self) -> list[str]:
        """Return why starts have waited in this test."""
        return [event.detail for event in self.events if event.kind == "queued"]

    def workers(self) -> list[str]:
        return [node["id"] for node in self.client.nodes().result(allow_s(10)) if node["id"] != self.head]

    def raylets(self) -> list[psutil.Process]:
        """Return the raylets of the nodes that the autoscaler has started."""
        found = []
        for process in self.cluster.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet" and f"--node_ip_address={self.head}" not in process.cmdline():
                    found.append(process)
        return found

    def joined(self) -> list[str]:
        """Return the started nodes that Ray shows. It asks Ray, and no service."""
        join.join(self.cluster.address, namespace=placement_groups.NAMESPACE)
        return [node.id for node in nodes.read() if not node.is_head]

    def groups(self) -> list[placement_groups.Group]:
        join.join(self.cluster.address, namespace=placement_groups.NAMESPACE)
        return placement_groups.read_groups()


async def read_pages() -> list[dict[str, Any]]:
    """Return what the page `/roost` shows of each service."""
    return [await read_cluster(service) for service in find_services()]


@contextmanager
def grown_by_kernels(home: Path, *, is_second: bool, keeps_state: bool = False) -> Iterator[ElasticRaylets]:
    """Run a head without GPUs. Its autoscaler can start two nodes of two A100 and one of 8 CPUs.

    `home` is the runtime folder of the services, which end with the cluster. `is_second` chooses the autoscaler. With
    `keeps_state` groups and actors outlive the head.
    """
    with (
        tempfile.TemporaryDirectory(prefix="e-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        head, environment = Machine(cpus=1), {VARIABLE: folder}
        with ElasticRaylets(
            head,
            TYPES,
            is_second=is_second,
            idle_s=IDLE_S,
            keeps_state=keeps_state,
            environment=environment,
        ) as cluster:
            patch.setenv("RAY_ADDRESS", cluster.address)
            node_types = connect("ray").node_types
            until_blocking(lambda: node_types().result(allow_s(60)), "the service knows node types", 60, 0.1)
            yield cluster
            join.leave()
            disconnect()
            settle(home)
