"""Kernels that bring their nodes, on a real Ray cluster with each of Ray's autoscalers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.clusters.ray.elastic_raylets import ElasticRaylets
from kit.clusters.ray.elastic_world import Elastic, grown_by_kernels, read_pages
from kit.machine.tiny_kernel import tiny
from roost.scheduler.backends.ray import guard, join, nodes, placement_groups
from roost.scheduler.errors import Cancelled, NoNodeEver
from roost.testing.clusters.raylets import why_not
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = [pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

NO_ROOM = "no A100 is left in zone b"


@pytest.fixture(scope="module", params=["second", "first"])
def elastic_cluster(request: pytest.FixtureRequest, module_runtime_dir: Path) -> Iterator[ElasticRaylets]:
    with grown_by_kernels(module_runtime_dir, is_second=request.param == "second") as cluster:
        yield cluster


@pytest.fixture
def elastic(elastic_cluster: ElasticRaylets) -> Iterator[Elastic]:
    """The cluster before it has grown. After the test it has no kernel, no group and no worker node."""
    elastic = Elastic(elastic_cluster)
    assert elastic.workers() == []
    yield elastic
    print(elastic_cluster.describe_growth())  # pytest shows it if the test has failed
    elastic_cluster.steer()
    for kernel in elastic.client.kernels().result(allow_s(10)):
        elastic.client.stop(kernel.id).result(allow_s(60))
    assert elastic.groups() == []
    until_blocking(lambda: elastic.workers() == [], "the machines end", 120, 0.1)
    elastic.close()


def test_kernels_that_fit_one_node_bring_one_node_and_it_goes_with_them(elastic: Elastic) -> None:
    starts = [elastic.client.start(tiny(gpus=0.5)) for _ in range(4)]
    kernels = [start.result(allow_s(120)) for start in starts]
    (node,) = {kernel.node_id for kernel in kernels}
    assert sorted(kernel.device_ids for kernel in kernels) == [("0",), ("0",), ("1",), ("1",)]
    assert elastic.launched() == ["gpu"]
    assert any("Ray's autoscaler was asked for 0.5 GPU" in why for why in elastic.reasons())
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
    until_blocking(elastic.groups, "the start has its placement group", 60, 0.1)
    elastic.client.cancel(message.kernel_id).result(allow_s(30))
    assert elastic.groups() == []
    with pytest.raises(Cancelled):
        start.result(allow_s(30))


@pytest.mark.long
def test_a_start_goes_on_after_the_repair_of_a_provider(elastic: Elastic) -> None:
    elastic.cluster.steer(fail=NO_ROOM)
    start = elastic.client.start(tiny(gpus=1))
    until_blocking(elastic.reasons, "the start waits", 60, 0.1)
    time.sleep(10)  # the autoscaler tries, and fails
    assert not start.done()
    elastic.cluster.steer()
    assert start.result(allow_s(120)).state == "running"


@pytest.mark.long
def test_a_start_outlives_a_machine_on_which_ray_does_not_start(elastic: Elastic) -> None:
    """The autoscaler ends such a machine and starts another one, if it is told how long machines take."""
    elastic.cluster.steer(lacks_ray=True)
    start = elastic.client.start(tiny(gpus=1))
    until_blocking(elastic.launched, "a machine is started", 60, 0.1)
    elastic.cluster.steer()
    assert start.result(allow_s(240)).state == "running"
    assert elastic.launched() == ["gpu", "gpu"]


@pytest.mark.long
def test_no_node_starts_for_the_kernel_of_an_ended_node(elastic: Elastic) -> None:
    elastic.client.start(tiny(gpus=2)).result(allow_s(120))
    (raylet,) = elastic.raylets()
    raylet.kill()
    until_blocking(lambda: not elastic.groups(), "the placement group is removed", 60, 0.1)
    until_blocking(lambda: not elastic.client.kernels().result(allow_s(10)), "the kernel ends", 60, 0.1)
    assert elastic.launched() == ["gpu"]


@pytest.mark.long
def test_the_guard_removes_a_group_without_a_service(elastic: Elastic) -> None:
    join.join(elastic.cluster.address, namespace=placement_groups.NAMESPACE)
    head = next(node for node in nodes.read() if node.is_head)
    name = placement_groups.name_group("roost:k:no-service/1", "ada")
    guard.renew(head, [name])
    placement_groups.create_unpinned(name, {"GPU": 64.0}, {})
    began = time.monotonic()
    until_blocking(lambda: not elastic.groups(), "the group is removed", guard.GRACE_S + 15, 0.1)
    waited_s = time.monotonic() - began
    print(f"removed after {waited_s:.0f} s")
    assert waited_s > guard.GRACE_S - 5
