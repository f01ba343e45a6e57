"""Kernels that bring their nodes, on a real Ray cluster with each of Ray's autoscalers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from kit.clusters.ray.elastic_raylets import ElasticRaylets
from kit.clusters.ray.elastic_world import Elastic, grown_by_kernels, read_pages, until
from kit.machine.tiny_kernel import tiny
from roost.bench.clusters.raylets import why_not
from roost.scheduler.backends.ray import guard, join, nodes, placement_groups
from roost.scheduler.client.call import Call
from roost.scheduler.client.client import Client, connect
from roost.scheduler.errors import Cancelled, NoNodeEver, RoostError
from roost.scheduler.messages import Event, Kernel
from roost.testing.deadlines import allow_s

pytestmark = [pytest.mark.rest, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

BOOT_S = 3
"""How long a machine boots before Ray starts there, so that a reading shows that it is being started."""
NO_ROOM = "no A100 is left in zone b"


@pytest.fixture(scope="module", params=["second", "first"])
def elastic_cluster(request: pytest.FixtureRequest, module_runtime_dir: Path) -> Iterator[ElasticRaylets]:
    with grown_by_kernels(module_runtime_dir, is_second=request.param == "second") as cluster:
        yield cluster


@pytest.fixture
def elastic(elastic_cluster: ElasticRaylets) -> Iterator[Elastic]:
    """The cluster before it has grown. After the test it has no kernel, no group and no machine."""
    elastic = Elastic(elastic_cluster)
    assert elastic.workers() == []
    yield elastic
    print(elastic_cluster.describe_growth())  # pytest shows it if the test has failed
    elastic_cluster.steer()
    for kernel in elastic.client.kernels().result(allow_s(10)):
        elastic.client.stop(kernel.id).result(allow_s(60))
    assert elastic.groups() == []
    until(lambda: elastic.cluster.count_machines() == 0 and elastic.workers() == [], 120)
    elastic.close()


def test_kernels_that_fit_one_node_bring_one_node_and_it_goes_with_them(elastic: Elastic) -> None:
    elastic.cluster.steer(delay_s=BOOT_S)
    starts = [elastic.client.start(tiny(gpus=0.5)) for _ in range(4)]
    kernels = [start.result(allow_s(120)) for start in starts]
    (node,) = {kernel.node_id for kernel in kernels}
    assert sorted(kernel.device_ids for kernel in kernels) == [("0",), ("0",), ("1",), ("1",)]
    assert elastic.has_launched(1), elastic.launched()
    if elastic.cluster.starts_too_many:
        until(lambda: elastic.workers() == [node])
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


def test_services_bring_no_more_nodes_than_the_cap(elastic: Elastic) -> None:
    """Two services ask for one node each, at once; further starts of one of them wait as well."""
    services = [connect("ray", max_new_nodes=1, scale_after_s=seconds) for seconds in (30, 31)]
    heard: list[Event] = []
    for service in services:
        service.listen(heard.append)
    starts = [service.start(tiny(gpus=2)) for service in services for _ in range(3)]

    def counts() -> tuple[int, int, int, int]:
        """Return how many groups, machines of the autoscaler, nodes and running kernels there are."""
        machines = elastic.cluster.count_machines()
        return len(elastic.groups()), machines, len(elastic.workers()), len(running(services))

    expected = [(1, 1, 1, 1)]
    if elastic.cluster.starts_too_many:  # a second kernel then takes the node that nobody has asked for
        expected.append((2, 2, 2, 2))
    try:
        until(lambda: counts() in expected, 180)
        time.sleep(6)  # longer than a service waits before it looks at Ray's table again
        assert counts() in expected
        reason = "all users may have 1 new node together (max_new_nodes), and have or wait for"
        assert any(event.kind == "conflict" and reason in event.detail for event in heard)
        print(elastic.launched())
    finally:  # else no later test has the cluster that it needs
        end_all(services, starts)


@pytest.mark.slow
def test_a_hundred_starts_of_one_user_bring_no_more_nodes_than_the_cap(elastic: Elastic) -> None:
    services = [connect("ray", max_new_nodes_per_user=1, scale_after_s=1)]
    starts = [services[0].start(tiny(gpus=2)) for _ in range(100)]
    machines = 2 if elastic.cluster.starts_too_many else 1

    def is_capped() -> bool:
        """True if one node at most is asked for, or there. A claim of a node that is there is tied to it."""
        asking = [group for group in elastic.groups() if not group.is_pinned]
        return len(asking) <= 1 and elastic.cluster.count_machines() <= machines

    try:
        until(lambda: not is_capped() or running(services), 120)
        for _ in range(50):  # all others ask again meanwhile
            assert is_capped(), (elastic.groups(), elastic.cluster.count_machines())
            time.sleep(0.2)
        assert 1 <= len(running(services)) <= machines  # one kernel on each node
        assert elastic.has_launched(1), elastic.launched()
    finally:
        end_all(services, starts)


def running(services: Sequence[Client]) -> list[Kernel]:
    found = [kernel for service in services for kernel in service.kernels().result(allow_s(10))]
    return [kernel for kernel in found if kernel.state == "running"]


def end_all(services: Sequence[Client], starts: Sequence[Call[Kernel]]) -> None:
    """End the kernels of these services, and wait for the end of their starts."""
    for service in services:
        for kernel in service.kernels().result(allow_s(10)):
            service.stop(kernel.id).result(allow_s(60))
    for start in starts:
        with suppress(RoostError):
            start.result(allow_s(30))


@pytest.mark.slow
def test_a_failed_launch_says_why_and_the_start_goes_on_after_the_repair(elastic: Elastic) -> None:
    elastic.cluster.steer(fail=NO_ROOM)
    start = elastic.client.start(tiny(gpus=1))
    why = NO_ROOM if elastic.cluster.says_why else "attempts have failed, and the autoscaler does not say why"
    until(lambda: any(why in reason for reason in elastic.reasons()))
    elastic.cluster.steer()
    assert start.result(allow_s(120)).state == "running"


@pytest.mark.slow
def test_a_start_outlives_a_machine_on_which_ray_does_not_start(elastic: Elastic) -> None:
    """The autoscaler ends such a machine and starts another one, if it is told how long machines take."""
    elastic.cluster.steer(lacks_ray=True)
    start = elastic.client.start(tiny(gpus=1))
    until(elastic.launched)
    elastic.cluster.steer()
    assert start.result(allow_s(240)).state == "running"
    assert elastic.has_launched(2), elastic.launched()


@pytest.mark.slow
def test_no_node_starts_for_the_kernel_of_an_ended_node(elastic: Elastic) -> None:
    node = elastic.client.start(tiny(gpus=2)).result(allow_s(120)).node_id
    assert elastic.has_launched(1), elastic.launched()
    launched = elastic.launched()
    (raylet,) = (each for each in elastic.raylets() if f"--node_ip_address={node}" in each.cmdline())
    raylet.kill()
    until(lambda: not elastic.groups())
    until(lambda: not elastic.client.kernels().result(allow_s(10)))
    assert elastic.launched() == launched


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
