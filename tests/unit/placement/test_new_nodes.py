"""Nodes that do not exist yet: types of nodes, their texts, and the decisions about them."""

from __future__ import annotations

import json

import pytest

from roost.placement import Decision, Device, Node, NodeType, Request, Snapshot, get_policy
from roost.placement.new_nodes import NodeTypes


def gpu_type(name: str = "a100x2", *, gpus: int = 2, **figures: object) -> NodeType:
    devices = tuple(Device(id=str(i), model="A100") for i in range(gpus))
    return NodeType(node=Node(id=name, cpus=8, memory_bytes=2**33, devices=devices), **figures)  # type: ignore[arg-type]


def decide(request: Request, nodes: list[Node], *types: NodeType, may_grow: bool = False) -> Decision:
    snapshot = Snapshot.of(nodes).with_node_types(types, may_grow=may_grow)
    policy, known = get_policy("balanced"), NodeTypes.of(snapshot)
    decision = policy.place(request, snapshot)
    on_types = get_policy("balanced").place(request, known.nodes, avoid=known.avoid)
    return known.add_to(decision, on_types)


CPU_NODE = Node(id="head", cpus=4, memory_bytes=2**32)


def test_a_type_that_fits_needs_a_new_node() -> None:
    decision = decide(Request(gpus=0.5), [CPU_NODE], gpu_type(running=1, limit=3))
    assert decision.new_node is not None
    assert decision.new_node.name == "a100x2"
    assert not decision.is_never
    assert decision.fits_no_node
    assert decision.reason == (
        "no node that is there could hold 0.5 GPU (head: needs 0.5 GPU, has none); a node of type a100x2 can be "
        "started for it (1 of 3 run)"
    )
    assert decision.remedies[-1].startswith("a node of type a100x2 can be started for it")


def test_a_type_with_room_is_preferred_to_one_at_its_limit() -> None:
    full, free = gpu_type("a", running=3, limit=3), gpu_type("b", limit=1)
    decision = decide(Request(gpus=2), [], full, free)
    assert decision.new_node == free


def test_a_type_at_its_limit_is_not_now() -> None:
    decision = decide(Request(gpus=2), [CPU_NODE], gpu_type(running=3, limit=3))
    assert decision.new_node is not None
    assert not decision.new_node.has_room
    assert not decision.is_never
    assert "all of the 3 nodes of type a100x2 that the cluster may have run already" in decision.reason


def test_no_type_that_fits_is_never_and_says_why_of_each() -> None:
    decision = decide(
        Request(gpus=3), [CPU_NODE], gpu_type(limit=3), gpu_type("t4", gpus=1, running=1, limit=1)
    )
    assert decision.new_node is None
    assert decision.is_never
    assert decision.reason == (
        "no node could ever hold 3 GPUs (head: needs 3 GPUs, has none); no type of node that the cluster can start "
        "could hold it (a100x2: needs 3 GPUs, has 2; t4: needs 3 GPUs, has 1)"
    )
    assert decision.remedies[-1].startswith("waiting does not help")


def test_never_without_any_node() -> None:
    assert decide(Request(gpus=3), [], gpu_type(limit=3)).is_never


def test_types_that_are_not_known_leave_it_open() -> None:
    decision = decide(Request(gpus=3), [CPU_NODE], gpu_type(limit=3), may_grow=True)
    assert not decision.is_never
    assert decision.fits_no_node


def test_a_full_node_is_named_beside_the_type() -> None:
    full = Node(id="n1", cpus=8, devices=(Device(id="0", model="A100", promised=1.0),))
    decision = decide(Request(gpus=1), [full], gpu_type(limit=3, running=1))
    assert not decision.fits_no_node
    assert decision.reason.startswith(
        "no node has room now for 1 GPU (n1: needs 1 GPU, 0 free); a node of type"
    )


@pytest.mark.parametrize(
    ("types", "text"),
    [
        (gpu_type(), "a node of type a100x2 can be started for it (0 run)"),
        (gpu_type(limit=1), "a node of type a100x2 can be started for it (0 of 1 runs)"),
        (gpu_type(limit=0), "the cluster may start no node of type a100x2"),
        (
            gpu_type(limit=1, running=1),
            "all of the 1 node of type a100x2 that the cluster may have run already",
        ),
    ],
)
def test_what_a_type_says(types: NodeType, text: str) -> None:
    assert types.describe_room() == text


def test_a_decision_with_a_type_survives_json() -> None:
    decision = decide(Request(gpus=1), [CPU_NODE], gpu_type(limit=3))
    read = Decision.from_dict(json.loads(json.dumps(decision.to_dict())))
    assert read.new_node == decision.new_node
    assert read.reason == decision.reason
    never = decide(Request(gpus=9), [CPU_NODE], gpu_type(limit=3))
    assert Decision.from_dict(json.loads(json.dumps(never.to_dict()))).reason == never.reason


def test_a_snapshot_keeps_its_types() -> None:
    snapshot = Snapshot.of([CPU_NODE]).with_node_types([gpu_type("b"), gpu_type("a")], may_grow=True)
    for after in (
        snapshot.apply([Node(id="head", cpus=4, cpus_promised=1)]),
        snapshot.apply([Node(id="new")]),
        snapshot.older_by(1.0),
    ):
        assert [each.name for each in after.node_types] == ["a", "b"]
        assert after.may_grow


def test_wrong_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="limit must not be negative"):
        gpu_type(limit=-1)
    assert NodeType.from_dict(gpu_type(limit=2).to_dict()) == gpu_type(limit=2)
