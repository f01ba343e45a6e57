"""The resources that a cluster's own programs and other users hold while a request waits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.scheduler import fake_world
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Device, Node, Request, Snapshot, get_policy
from roost.scheduler.backends.base import Backend, Resource
from roost.scheduler.core import kernel_table
from roost.scheduler.core.other_holders import OtherHolders, find_others
from roost.scheduler.errors import BackendUnavailable

TWO_GPUS = Request(gpus=2)


class Cluster:
    """A backend that only names holders."""

    other_holders = "Ray actors and tasks that roost did not start"
    describe_holders = Backend.describe_holders

    def __init__(self, *names: str, problem: str = "") -> None:
        self.names, self.problem = names, problem
        self.asked: list[str] = []
        self.resources: list[str] = []

    async def name_holders(self, node_ids: Collection[str], resource: Resource) -> Sequence[str]:
        self.asked += sorted(node_ids)
        self.resources.append(resource)
        if self.problem:
            raise BackendUnavailable(self.problem)
        return self.names


def node(name: str, gpus: int, promised: float, **more: Any) -> Node:
    devices = tuple(Device(id=str(number)) for number in range(gpus))
    return Node(id=name, cpus=8, devices=devices, gpus_promised=promised, **more)


def lease(node_id: str, gpus: float, **more: Any) -> Lease:
    request = Request(gpus=gpus, **more)
    return Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=request, node_id=node_id)


async def find(
    cluster: Any, nodes: list[Node], *leases: Lease, request: Request = TWO_GPUS
) -> OtherHolders | None:
    snapshot = Snapshot.of(nodes)
    decision = get_policy("balanced").place(request, snapshot)
    assert decision.placement is None
    return await find_others(decision, snapshot, leases, cluster)


async def test_actors_that_hold_gpus_are_counted_and_named() -> None:
    """Two nodes of two GPUs: kernels have one, others have 2.5."""
    cluster = Cluster("Trainer of job 01, pid 7 on a", "B", "C", "D")
    found = await find(cluster, [node("a", 2, 2), node("b", 2, 1.5)], lease("b", 1))
    assert found == {
        "resource": "gpus",
        "amount": 2.5,
        "of": 4,
        "holders": list(cluster.names),
        "text": "2.5 of 4 GPUs are held by Ray actors and tasks that roost did not start "
        "(Trainer of job 01, pid 7 on a, B, C and 1 more)",
    }
    assert cluster.asked == ["a", "b"]


async def test_one_gpu_is_held_by_something_without_a_name() -> None:
    for cluster in (Cluster(), Cluster(problem="Ray is away")):
        found = await find(cluster, [node("a", 2, 1)])
        assert found is not None
        assert found["text"] == "1 of 2 GPUs is held by Ray actors and tasks that roost did not start"


async def test_memory_and_cpus_that_others_hold_are_counted() -> None:
    cluster = Cluster("B")
    nodes = [node("a", 2, 0, memory_bytes=8 << 30, memory_promised_bytes=6 << 30, cpus_promised=7)]
    found = await find(
        cluster, nodes, lease("a", 0, memory_bytes=1 << 30), request=Request(memory_bytes=4 << 30)
    )
    assert found is not None
    assert (found["resource"], found["amount"], found["of"]) == ("memory", 5 << 30, 8 << 30)
    by = "held by Ray actors and tasks that roost did not start (B)"
    assert found["text"] == f"5 GiB of 8 GiB of memory is {by}"
    found = await find(cluster, nodes, lease("a", 0, cpus=1.5), request=Request(cpus=4))
    assert found is not None
    assert (found["resource"], found["amount"], found["of"]) == ("cpus", 5.5, 8)
    assert found["text"] == f"5.5 of 8 CPUs are {by}"
    assert cluster.resources == ["memory", "cpus"]


async def test_only_the_resource_that_is_short_counts() -> None:
    """Others hold GPUs, but own kernels have the CPUs for which the request waits."""
    nodes = [node("a", 2, 2, cpus_promised=8)]
    assert await find(Cluster("x"), nodes, lease("a", 0, cpus=8), request=Request(cpus=1)) is None


async def test_a_backend_may_word_the_holders_itself() -> None:
    cluster: Any = Cluster("ada's kernel since 10:14")
    cluster.describe_holders = " and ".join
    found = await find(cluster, [node("a", 2, 1)])
    assert found is not None
    assert found["text"] == "1 of 2 GPUs is held by ada's kernel since 10:14"


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("a", 2, 1)], id="only kernels"),
        pytest.param([node("a", 2, 1), node("few", 1, 1)], id="never"),
    ],
)
async def test_nobody_else_holds_gpus_that_the_request_could_have(nodes: list[Node]) -> None:
    assert await find(Cluster("x"), nodes, lease("a", 1)) is None


async def test_a_backend_that_cannot_tell_says_nothing() -> None:
    cluster = Cluster("x")
    cluster.other_holders = ""
    assert await find(cluster, [node("a", 2, 2)]) is None
    assert cluster.asked == []


async def test_a_lease_that_was_just_given_back_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster shows late that the resources are free."""
    monkeypatch.setattr(kernel_table, "_SHOWN_LATE_S", 3_600.0)
    async with fake_world(tmp_path) as w:
        monkeypatch.setattr(w.backend, "other_holders", "others", raising=False)
        most = (await w.backend.snapshot()).node("here").cpus
        await w.start("k", cpus=most)
        held = await w.backend.snapshot()
        await w.scheduler.stop("k", 0.0)

        async def show_late() -> Snapshot:
            return held

        monkeypatch.setattr(w.backend, "snapshot", show_late)
        explained = await w.scheduler.explain(Request(cpus=most), Owner(user="bob"))
        assert (explained["placement"], explained["others"]) == (None, None)
        monkeypatch.setattr(kernel_table, "_SHOWN_LATE_S", 0.0)
        explained = await w.scheduler.explain(Request(cpus=most), Owner(user="bob"))
        assert explained["others"]["amount"] == most
