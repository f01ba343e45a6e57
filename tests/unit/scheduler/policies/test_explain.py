"""The additions of `roost explain`: warnings, and the kernels that hold scarce resources."""

from __future__ import annotations

from pathlib import Path

from kit.fakes.scheduler import FakeAgent, fake_world, scheduler_on
from roost.launchers.protocol.messages import Owner
from roost.placement import Decision, Device, Node, Request, Snapshot, get_policy
from roost.scheduler.backends.base import Lease
from roost.scheduler.policies.explain import build_explanation, find_metrics_warnings, find_soonest

GIB = 1 << 30
ADA = Owner(user="ada", application="lab")


def lease(kernel_id: str, node_id: str, *devices: str, **asked: object) -> Lease:
    request = Request(**asked)  # type: ignore[arg-type]
    return Lease(
        id=f"roost:{kernel_id}:s/1",
        kernel_id=kernel_id,
        node_id=node_id,
        device_ids=devices,
        request=request,
        owner=ADA,
    )


def cluster(leases: list[Lease], *nodes: Node) -> Snapshot:
    """Return a snapshot of the nodes with these leases."""
    by_id = {node.id: node for node in nodes}
    for held in leases:
        by_id[held.node_id] = by_id[held.node_id].with_kernel(held.request, held.device_ids)
    return Snapshot.of(by_id.values())


def node(id_: str, gpus: int = 2, **values: object) -> Node:
    devices = tuple(Device(id=str(i), model="T4") for i in range(gpus))
    return Node(**{"id": id_, "cpus": 8, "memory_bytes": 64 * GIB, "devices": devices, **values})  # type: ignore[arg-type]


def decided(snapshot: Snapshot, **asked: object) -> Decision:
    return get_policy("pack").place(Request(**asked), snapshot)  # type: ignore[arg-type]


def to_end(leases: list[Lease], snapshot: Snapshot, **asked: object) -> tuple[str, list[str]] | None:
    """Return the node where the fewest kernels must end to make room for a request, and their ids, or None."""
    found = find_soonest(decided(snapshot, **asked), snapshot, leases, {})
    return None if found is None else (found["node_id"], [kernel["id"] for kernel in found["kernels"]])


def test_the_smallest_kernel_that_makes_room_alone() -> None:
    leases = [
        lease("big", "a", "0", gpus=1),
        lease("half", "a", "1", gpus=0.5),
        lease("x", "a", "1", gpus=0.5),
    ]
    snapshot = cluster(leases, node("a"))
    assert to_end(leases, snapshot, gpus=0.5) == ("a", ["half"])
    assert to_end(leases, snapshot, gpus=1) == ("a", ["big"])


def test_no_unnecessary_kernel_is_chosen() -> None:
    amounts = {"one": 1, "two": 2, "three": 3, "cpu": 0}
    leases = [lease(name, "a", memory_bytes=16 * GIB * n, cpus=0 if n else 8) for name, n in amounts.items()]
    snapshot = cluster(leases[:-1], node("a", memory_bytes=96 * GIB))
    assert to_end(leases[:-1], snapshot, memory_bytes=64 * GIB) == ("a", ["two", "three"])
    snapshot = cluster(leases, node("a", memory_bytes=96 * GIB))
    assert to_end(leases, snapshot, memory_bytes=16 * GIB, cpus=8) == ("a", ["cpu", "three"])


def test_the_node_with_the_fewest_kernels_to_end() -> None:
    halves = [lease(f"a{i}", "a", str(i // 2), gpus=0.5) for i in range(4)]
    wholes = [lease(f"b{i}", "b", str(i), gpus=1) for i in range(2)]
    snapshot = cluster(halves + wholes, node("a"), node("b"), node("c", gpus=0))
    assert to_end(halves + wholes, snapshot, gpus=1) == ("b", ["b0"])
    assert to_end(halves + wholes, snapshot, gpus=2) == ("b", ["b0", "b1"])
    assert to_end(halves + wholes, snapshot, gpus=0.5) == ("a", ["a0"])


def test_kernels_that_hold_a_custom_resource() -> None:
    leases = [lease("two", "a", resources={"licence": 2}), lease("cpu", "a", cpus=1)]
    snapshot = cluster(leases, node("a", resources={"licence": 2}))
    assert to_end(leases, snapshot, resources={"licence": 1}) == ("a", ["two"])
    found = find_soonest(decided(snapshot, resources={"licence": 1}), snapshot, leases, {})
    assert found is not None
    assert found["kernels"][0]["resources"] == {"licence": 2.0}


def test_none_if_no_end_makes_room() -> None:
    leases = [lease("k", "a", "0", gpus=1), lease("gone", "elsewhere", gpus=1)]
    others = node("a", gpus=1, memory_promised_bytes=64 * GIB)  # another program holds the memory
    assert to_end(leases, cluster(leases[:1], others), gpus=1, memory_bytes=GIB) is None
    assert to_end(leases, cluster(leases[:1], node("a", gpus=1, is_draining=True)), gpus=1) is None
    tainted = cluster(leases[:1], node("a", gpus=1, taints=("lab",)))
    assert to_end(leases, tainted, gpus=1) is None
    assert to_end(leases, tainted, gpus=1, tolerates=("lab",)) == ("a", ["k"])


def test_warnings_about_missing_or_old_metrics() -> None:
    nodes = [node(name, metrics_age_s=age) for name, age in (("a", 1.0), ("b", 31.0), ("c", None))]
    nowhere = Decision(request=Request(), policy="pack")
    assert find_metrics_warnings(nowhere, Snapshot.of(nodes)) == [
        "1 of 3 nodes has no metrics: real use is unknown",
        "1 of 3 nodes has metrics older than 30 s: real use is unknown",
    ]
    assert find_metrics_warnings(nowhere, Snapshot.of([])) == []
    fresh = Snapshot.of(nodes[:1])
    assert find_metrics_warnings(nowhere, fresh) == find_metrics_warnings(decided(fresh, cpus=1), fresh) == []
    assert find_metrics_warnings(decided(fresh, gpus=2), fresh) == [
        "the real use of GPU 0, 1 on a is unknown"
    ]
    snapshot = Snapshot.of(nodes[2:])
    document = build_explanation(get_policy("balanced").place(Request(gpus=1), snapshot), snapshot)
    assert (document["policy"], document["nodes"], document["soonest"]) == ("balanced", 1, None)
    assert "round robin" in document["fallback"]


async def test_a_live_cluster_names_the_kernels_that_hold_scarce_resources(tmp_path: Path) -> None:
    ada = Owner(user="ada", application="lab")
    async with fake_world(tmp_path, gpus=1) as w:
        room = await w.scheduler.explain(Request(gpus=1), ada)
        assert (room["placement"]["node_id"], room["soonest"]) == ("here", None)
        kernel = await w.start("k", gpus=0.75, owner=ada)
        explanation = await w.scheduler.explain(Request(gpus=0.5), Owner(user="bob"))
        assert explanation["placement"] is None
        (holder,) = explanation["soonest"]["kernels"]
        assert (holder["id"], holder["user"], holder["gpus"]) == ("k", "ada", 0.75)
        assert kernel.process is not None
        assert (holder["device_ids"], holder["since"]) == (["0"], kernel.process.launched_at)
        never = await w.scheduler.explain(Request(gpus=2), ada)
        assert (never["is_never"], never["soonest"]) == (True, None)


async def test_kernels_of_another_scheduler_hold_room_too(tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path, gpus=1)
    async with scheduler_on([agent], name="other") as other:
        await other.start("theirs", gpus=1)
        async with scheduler_on([agent], name="mine") as mine:
            explanation = await mine.scheduler.explain(Request(gpus=1), Owner(user="bob"))
            (holder,) = explanation["soonest"]["kernels"]
            assert (holder["id"], holder["since"]) == ("theirs", None)
    await agent.close()
