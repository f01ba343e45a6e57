"""The resources that a cluster's own programs and other users hold while a request waits."""

from __future__ import annotations

from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Device, Node, Request, Snapshot, get_policy
from roost.scheduler.core.other_holders import OtherHolders, find_others

TWO_GPUS = Request(gpus=2)


class Cluster:
    """A backend whose cluster has other holders."""

    other_holders = "Ray actors and tasks that roost did not start"


def node(name: str, gpus: int, promised: float, **more: Any) -> Node:
    devices = tuple(Device(id=str(number)) for number in range(gpus))
    return Node(id=name, cpus=8, devices=devices, gpus_promised=promised, **more)


def lease(node_id: str, gpus: float, **more: Any) -> Lease:
    request = Request(gpus=gpus, **more)
    return Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=request, node_id=node_id)


def find(cluster: Any, nodes: list[Node], *leases: Lease, request: Request = TWO_GPUS) -> OtherHolders | None:
    snapshot = Snapshot.of(nodes)
    decision = get_policy("balanced").place(request, snapshot)
    assert decision.placement is None
    return find_others(decision, snapshot, leases, cluster)


def test_gpus_that_others_hold_are_counted() -> None:
    """Two nodes of two GPUs: kernels have one, others have 2.5."""
    found = find(Cluster(), [node("a", 2, 2), node("b", 2, 1.5)], lease("b", 1))
    text = "2.5 of 4 GPUs are held by Ray actors and tasks that roost did not start"
    assert found == {"resource": "gpus", "amount": 2.5, "of": 4, "text": text}
    one = find(Cluster(), [node("a", 2, 1)])
    assert one is not None
    assert one["text"] == "1 of 2 GPUs is held by Ray actors and tasks that roost did not start"


def test_memory_and_cpus_that_others_hold_are_counted() -> None:
    cluster = Cluster()
    nodes = [node("a", 2, 0, memory_bytes=8 << 30, memory_promised_bytes=6 << 30, cpus_promised=7)]
    found = find(cluster, nodes, lease("a", 0, memory_bytes=1 << 30), request=Request(memory_bytes=4 << 30))
    assert found is not None
    assert (found["resource"], found["amount"], found["of"]) == ("memory", 5 << 30, 8 << 30)
    by = "held by Ray actors and tasks that roost did not start"
    assert found["text"] == f"5 GiB of 8 GiB of memory is {by}"
    found = find(cluster, nodes, lease("a", 0, cpus=1.5), request=Request(cpus=4))
    assert found is not None
    assert (found["resource"], found["amount"], found["of"]) == ("cpus", 5.5, 8)
    assert found["text"] == f"5.5 of 8 CPUs are {by}"


def test_only_the_resource_that_is_short_counts() -> None:
    """Others hold GPUs, but own kernels have the CPUs for which the request waits."""
    nodes = [node("a", 2, 2, cpus_promised=8)]
    assert find(Cluster(), nodes, lease("a", 0, cpus=8), request=Request(cpus=1)) is None


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("a", 2, 1)], id="only kernels"),
        pytest.param([node("a", 2, 1), node("few", 1, 1)], id="never"),
    ],
)
def test_nobody_else_holds_gpus_that_the_request_could_have(nodes: list[Node]) -> None:
    assert find(Cluster(), nodes, lease("a", 1)) is None


def test_a_backend_that_cannot_tell_says_nothing() -> None:
    cluster = Cluster()
    cluster.other_holders = ""
    assert find(cluster, [node("a", 2, 2)]) is None
