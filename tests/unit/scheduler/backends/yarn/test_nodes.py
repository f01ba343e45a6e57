"""The ResourceManager's nodes, as it reported them, become placement's nodes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request, Snapshot, get_policy
from roost.scheduler.backends.yarn.nodes import NodeBook, to_placement
from roost.scheduler.backends.yarn.settings import RoostYarnBackend

RECORDED = Path(__file__).with_name("recorded_nodes.json")
"""`GET /ws/v1/cluster/nodes` of Hadoop 3.4.2: a node with 2 T4, one without GPUs, and one with 4 A100 and zone=b."""
T4, BARE, A100 = "127.0.36.12", "127.0.36.11", "127.0.36.13"
GIB = 1 << 30


@pytest.fixture
def raws() -> list[dict[str, Any]]:
    return list(json.loads(RECORDED.read_text())["nodes"]["node"])


@pytest.fixture
def book() -> NodeBook:
    return NodeBook(RoostYarnBackend())


def find(raws: list[dict[str, Any]], host: str) -> dict[str, Any]:
    return next(raw for raw in raws if raw["nodeHostName"] == host)


def use(raw: dict[str, Any], memory_mb: int, vcores: int, gpus: int) -> None:
    """Change `raw`, a node as YARN reports it, so that these amounts are in use."""
    used = raw["usedResource"]
    used["memory"], used["vCores"] = memory_mb, vcores
    for info in used["resourceInformations"]["resourceInformation"]:
        info["value"] = {"memory-mb": memory_mb, "vcores": vcores, "yarn.io/gpu": gpus}[info["name"]]


def lease(host: str, **amounts: Any) -> Lease:
    return Lease(id="l", kernel_id="k", owner=Owner(user="ada"), request=Request(**amounts), node_id=host)


def test_a_node_manager_that_has_just_been_started_has_measured_nothing(
    book: NodeBook, raws: list[dict[str, Any]]
) -> None:
    find(raws, A100)["resourceUtilization"] |= {"nodeCPUUsage": -1.0, "nodePhysicalMemoryMB": 0}
    book.set(raws, (), {})
    node = next(node for node in book.nodes(()) if node.id == A100)
    assert (node.cpus_used, node.memory_used_bytes, node.metrics_age_s) == (None, None, None)


def test_a_node_has_its_resources_labels_and_real_use(book: NodeBook, raws: list[dict[str, Any]]) -> None:
    book.set(raws, (), {})
    node = next(node for node in book.nodes(()) if node.id == A100)
    assert (node.cpus, node.memory_bytes, node.gpus) == (8.0, 8 * GIB, 4)
    assert {device.model for device in node.devices} == {"A100"}
    assert node.labels == {"gpu-model": "A100", "zone": "b", "rack": "/default-rack"}
    assert node.cpus_used == 1.2
    assert node.memory_used_bytes is not None
    assert 0 <= 5097 * 2**20 - node.memory_used_bytes < 64 * 2**20
    assert (node.is_draining, node.taints) == (False, ())


def test_roosts_own_containers_are_left_out_and_their_rounding_is_not(
    book: NodeBook, raws: list[dict[str, Any]]
) -> None:
    use(find(raws, T4), 3072, 3, 2)
    own = lease(T4, cpus=0.5, memory_bytes=GIB // 2, gpus=1)
    book.set(raws, (), {7: own})
    node = next(node for node in book.nodes({7}) if node.id == T4)
    promised = node.cpus_promised, node.memory_promised_bytes, node.gpus_promised
    assert promised == (2.5, 5 * GIB // 2, 1.0)
    assert node.with_kernel(own.request).gpus_free == 0


def test_a_released_container_counts_until_yarn_reports_that_it_is_gone(
    book: NodeBook, raws: list[dict[str, Any]]
) -> None:
    use(find(raws, T4), 1024, 1, 1)
    book.set(raws, (), {7: lease(T4, cpus=1, memory_bytes=GIB, gpus=1)})
    (held,), (released,) = ([n for n in book.nodes(live) if n.id == T4] for live in ({7}, ()))
    assert (held.gpus_promised, released.gpus_promised) == (0.0, 1.0)
    use(find(raws, T4), 0, 0, 0)
    assert book.set(raws, (), {})
    assert [n.gpus_promised for n in book.nodes(())] == [0.0] * 3


def test_nodes_that_left_are_gone_and_others_say_why_they_take_nothing(
    book: NodeBook, raws: list[dict[str, Any]]
) -> None:
    find(raws, BARE)["state"] = "LOST"
    find(raws, T4).update(state="UNHEALTHY", healthReport="1/1 local-dirs usable space is below\n 90 %")
    find(raws, A100)["state"] = "DECOMMISSIONING"
    book.set(raws, (), {})
    reasons = {node.id: node.drains_because for node in book.nodes(())}
    assert reasons == {
        T4: "is unhealthy (1/1 local-dirs usable space is below 90 %)",
        A100: "is being decommissioned",
    }


@pytest.mark.parametrize("exclusive", [("vip",), ()])
def test_only_requests_with_its_label_go_to_an_exclusive_partition(
    book: NodeBook, raws: list[dict[str, Any]], exclusive: tuple[str, ...]
) -> None:
    find(raws, BARE)["nodeLabels"] = ["vip"]
    book.set([find(raws, BARE)], exclusive, {})
    policy, snapshot = get_policy("balanced"), Snapshot.of(book.nodes(()))
    without, within = Request(cpus=1), to_placement(Request(cpus=1, options={"label": "vip"}))
    assert (policy.place(without, snapshot).placement is None) == bool(exclusive)
    assert policy.place(within, snapshot).placement is not None
    book.set([find(raws, T4)], exclusive, {})
    assert policy.place(within, Snapshot.of(book.nodes(()))).is_never


def test_an_unchanged_node_is_the_same_object(book: NodeBook, raws: list[dict[str, Any]]) -> None:
    assert book.set(raws, (), {})
    before = {node.id: node for node in book.nodes(())}
    again = deepcopy(raws)
    for raw in again:
        raw["lastHealthUpdate"] += 1000
    assert not book.set(again, (), {})
    use(find(again, T4), 1024, 1, 0)
    assert book.set(again, (), {})
    assert {node.id for node in book.nodes(()) if node is not before[node.id]} == {T4}


def test_hadoop_2_has_no_resource_types(book: NodeBook, raws: list[dict[str, Any]]) -> None:
    raw = find(raws, T4)
    for name in ("totalResource", "usedResource", "availableResource", "resourceUtilization"):
        del raw[name]
    raw.update(usedMemoryMB=1024, availMemoryMB=7168, usedVirtualCores=1, availableVirtualCores=3)
    book.set([raw], (), {})
    (node,) = book.nodes(())
    assert (node.cpus, node.cpus_promised, node.memory_bytes, node.memory_promised_bytes) == (
        4.0, 1.0, 8 * GIB, GIB,
    )  # fmt: skip
    assert node.cpus_used is None
    assert node.metrics_age_s is None


def test_a_decommissioned_node_has_left_for_that_reason(book: NodeBook, raws: list[dict[str, Any]]) -> None:
    left = find(raws, T4)
    left["state"] = "DECOMMISSIONED"
    book.set(raws, (), {})
    assert T4 not in [node.id for node in book.nodes(())]
    assert book.trouble(T4) == "was decommissioned"
    book.set([left, {**left, "state": "RUNNING"}], (), {})  # it is back, and both rows are there
    assert book.trouble(T4) == ""
