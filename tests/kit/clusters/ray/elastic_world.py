"""A real Ray cluster that starts without worker nodes, and what tests ask about its growth."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.machine.daemons import settle
from roost.bench.clusters.raylets import Machine
from roost.provisioners.server_extension.cluster_page import read_cluster
from roost.scheduler.backends.ray import join, nodes, placement_groups
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.client.running_services import find_services
from roost.scheduler.messages import Event
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import VARIABLE

from .elastic_raylets import ElasticRaylets, Launch

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
        return [each.node_type for each in self.launches()]

    def has_launched(self, count: int) -> bool:
        """True if the autoscaler has started this many GPU nodes in this test, and no other nodes."""
        launched = self.launched()
        return launched == ["gpu"] * count or (
            self.cluster.starts_too_many and launched == ["gpu"] * (count + 1)
        )

    def launches(self) -> list[Launch]:
        """Return the nodes that the autoscaler has started in this test."""
        return [each for each in self.cluster.launches()[self._before :] if each.what == "launch"]

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

    def read_group_times(self) -> dict[str, tuple[float, float]]:
        """Return by kernel when Ray was asked for the kernel's group and when it had created the group.

        These are the GCS's own times, in seconds since the epoch. Groups that wait are left out.
        """
        from ray._private.state import state
        from ray.core.generated import gcs_pb2

        kernel_of = {group.id: group.kernel_id for group in self.groups() if group.is_created}
        found = {}
        for content in state._connect_and_get_accessor().get_placement_group_table():
            entry = gcs_pb2.PlacementGroupTableData.FromString(content)
            if (kernel_id := kernel_of.get(entry.placement_group_id.hex())) is not None:
                asked_ms = entry.placement_group_creation_timestamp_ms
                created_ms = entry.placement_group_final_bundle_placement_timestamp_ms
                found[kernel_id] = asked_ms / 1e3, created_ms / 1e3
        return found


async def read_pages() -> list[dict[str, Any]]:
    """Return what the page `/roost` shows of each service."""
    return [await read_cluster(service) for service in find_services()]


def until(holds: Callable[[], object], within_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + allow_s(within_s)
    while not holds():
        assert time.monotonic() < give_up_at, "too late"
        time.sleep(0.1)


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
            until(lambda: connect("ray").node_types().result(allow_s(60)))
            yield cluster
            join.leave()
            disconnect()
            settle(home)
