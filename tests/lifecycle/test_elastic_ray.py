"""Kernels that bring their nodes, on a real Ray cluster with each of Ray's autoscalers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.ray.elastic_raylets import ElasticRaylets
from kit.machine.daemons import settle
from kit.machine.tiny_kernel import tiny
from roost.bench.clusters.raylets import Machine, why_not
from roost.provisioners.server_extension.cluster_page import read_cluster
from roost.scheduler.backends.ray import guard, join, nodes, placement_groups
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.client.running_services import find_services
from roost.scheduler.errors import Cancelled, NoNodeEver
from roost.scheduler.messages import Event
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import VARIABLE

pytestmark = [pytest.mark.rest, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

TYPES = {"gpu": (Machine(cpus=2, gpus=2, gpu_model="A100"), 2), "cpu": (Machine(cpus=8), 1)}
NO_ROOM = "no A100 is left in zone b"


class Elastic:
    """A cluster without worker nodes, the service's client, and the service's events."""

    def __init__(self, cluster: ElasticRaylets) -> None:
        self.cluster = cluster
        self.client: Client = connect("ray")
        self.events: list[Event] = []
        self._stop = self.client.listen(self.events.append)
        self._before = len(cluster.launches())

    def close(self) -> None:
        self._stop()

    def launched(self) -> list[str]:
        """Return the types of the nodes that the autoscaler has started in this test."""
        return [each.node_type for each in self.cluster.launches()[self._before :] if each.what == "launch"]

    def reasons(self) -> list[str]:
        """Return why starts have waited in this test."""
        return [event.detail for event in self.events if event.kind == "queued"]

    def workers(self) -> list[str]:
        head = self.cluster.address.partition(":")[0]
        return [node["id"] for node in self.client.nodes().result(allow_s(10)) if node["id"] != head]

    def groups(self) -> list[placement_groups.Group]:
        join.join(self.cluster.address, namespace=placement_groups.NAMESPACE)
        return placement_groups.read_groups()


async def read_pages() -> list[dict[str, Any]]:
    """Return what the page `/roost` shows of each service."""
    return [await read_cluster(service) for service in find_services()]


def until(holds: Callable[[], object], within_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + allow_s(within_s)
    while not holds():
        assert time.monotonic() < give_up_at, "too late"
        time.sleep(0.1)


@pytest.fixture(scope="module", params=["second", "first"])
def elastic_cluster(request: pytest.FixtureRequest, module_runtime_dir: Path) -> Iterator[ElasticRaylets]:
    """A head without GPUs. Its autoscaler can start two nodes of two A100 and one of 8 CPUs."""
    with (
        tempfile.TemporaryDirectory(prefix="e-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        is_second, environment = request.param == "second", {VARIABLE: folder}
        head = Machine(cpus=1)
        with ElasticRaylets(head, TYPES, is_second=is_second, idle_s=3.0, environment=environment) as cluster:
            patch.setenv("RAY_ADDRESS", cluster.address)
            until(lambda: connect("ray").node_types().result(allow_s(60)))
            yield cluster
            join.leave()
            disconnect()
            settle(module_runtime_dir)


@pytest.fixture
def elastic(elastic_cluster: ElasticRaylets) -> Iterator[Elastic]:
    """The cluster before it has grown. After the test it has no kernel, no group and no worker node."""
    elastic = Elastic(elastic_cluster)
    assert elastic.workers() == []
    yield elastic
    elastic_cluster.steer()
    for kernel in elastic.client.kernels().result(allow_s(10)):
        elastic.client.stop(kernel.id).result(allow_s(60))
    assert elastic.groups() == []
    until(lambda: elastic.workers() == [], 120)
    elastic.close()


def test_kernels_that_fit_one_node_bring_one_node_and_it_goes_with_them(elastic: Elastic) -> None:
    starts = [elastic.client.start(tiny(gpus=0.5)) for _ in range(4)]
    kernels = [start.result(allow_s(120)) for start in starts]
    (node,) = {kernel.node_id for kernel in kernels}
    assert sorted(kernel.device_ids for kernel in kernels) == [("0",), ("0",), ("1",), ("1",)]
    assert elastic.launched() == ["gpu"]
    assert any("a node with 2 × A100 is being started (type gpu, 1 of 2)" in why for why in elastic.reasons())
    types = {each["node"]["id"]: each["running"] for each in elastic.client.node_types().result(allow_s(10))}
    assert types == {"cpu": 0, "gpu": 1}
    assert elastic.workers() == [node]
    (page,) = asyncio.run(read_pages())
    assert {(each["name"], each["node"], each["running"]) for each in page["node_types"]} == {
        ("cpu", "8 CPUs", 0),
        ("gpu", "2 × A100", 1),
    }
    print({name: round(ms) for name, ms in kernels[0].timing_ms.items()})


def test_a_request_that_no_type_could_hold_is_refused_and_starts_nothing(elastic: Elastic) -> None:
    began = time.monotonic()
    with pytest.raises(NoNodeEver, match=r"needs 3 GPUs, has none.*gpu: needs 3 GPUs, has 2"):
        elastic.client.start(tiny(gpus=3)).result(allow_s(30))
    print(f"refused after {time.monotonic() - began:.2f} s")
    assert elastic.launched() == []


def test_a_cancelled_start_leaves_no_group(elastic: Elastic) -> None:
    message = tiny(cpus=4)
    start = elastic.client.start(message)
    until(elastic.groups)
    elastic.client.cancel(message.kernel_id).result(allow_s(30))
    assert elastic.groups() == []
    with pytest.raises(Cancelled):
        start.result(allow_s(30))


@pytest.mark.slow
def test_a_failed_launch_says_why_and_the_start_goes_on_after_the_repair(elastic: Elastic) -> None:
    elastic.cluster.steer(fail=NO_ROOM)
    start = elastic.client.start(tiny(gpus=1))
    until(lambda: any(NO_ROOM in reason for reason in elastic.reasons()))
    elastic.cluster.steer()
    assert start.result(allow_s(120)).state == "running"


@pytest.mark.slow
def test_no_node_starts_for_the_kernel_of_an_ended_node(elastic: Elastic) -> None:
    kernel = elastic.client.start(tiny(gpus=2)).result(allow_s(120))
    at = elastic.cluster.folder / kernel.node_id
    (raylet,) = [
        each for each in elastic.cluster.processes() if each.name() == "raylet" and at in _parents(each)
    ]
    raylet.kill()
    until(lambda: not elastic.groups())
    until(lambda: not elastic.client.kernels().result(allow_s(10)))
    assert elastic.launched() == ["gpu"]


@pytest.mark.slow
def test_the_guard_removes_a_group_without_a_service(elastic: Elastic) -> None:
    join.join(elastic.cluster.address, namespace=placement_groups.NAMESPACE)
    head = next(node for node in nodes.read() if node.is_head)
    name = placement_groups.name_group("roost:k:no-service/1", "ada")
    guard.renew(head, [name])
    placement_groups.create_unpinned(name, {"GPU": 64.0}, {})
    began = time.monotonic()
    until(lambda: not elastic.groups(), guard.GRACE_S + 15)
    waited_s = time.monotonic() - began
    print(f"removed after {waited_s:.0f} s")
    assert waited_s > guard.GRACE_S - 5


def _parents(process: psutil.Process) -> list[Path]:
    cwd = Path(process.cwd())
    return [cwd, *cwd.parents]
