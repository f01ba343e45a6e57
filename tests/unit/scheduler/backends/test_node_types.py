"""Types of nodes as an operator writes them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from traitlets import TraitError

from roost.placement import Node, Snapshot
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.backends.node_types import count_nodes, make_node_types

A100 = {
    "name": "a100",
    "cpus": 8,
    "memory": "32GiB",
    "gpus": 2,
    "gpu_model": "A100",
    "gpu_memory": "40GiB",
    "labels": {"pool": "a100"},
    "taints": ["gpu"],
    "resources": {"licence": 1},
    "limit": 3,
}


def test_an_entry_becomes_an_empty_node() -> None:
    (found,) = make_node_types([A100])
    node = found.node
    assert (node.id, node.cpus, node.memory_bytes, node.gpus) == ("a100", 8, 2**35, 2)
    assert {(device.model, device.memory_bytes) for device in node.devices} == {("A100", 40 * 2**30)}
    assert (node.labels, node.taints, node.resources) == ({"pool": "a100"}, ("gpu",), {"licence": 1})
    assert found.limit == 3


def test_nodes_are_counted_by_the_labels_of_their_type() -> None:
    types = make_node_types([A100, {"name": "any", "cpus": 4}])
    nodes = [Node(id="a", labels={"pool": "a100", "zone": "x"}), Node(id="b", labels={"pool": "t4"})]
    assert [each.running for each in count_nodes(types, Snapshot.of(nodes))] == [1, 0]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({}, "a node type needs a name"),
        ({"name": 3}, "a node type needs a name"),
        ({"name": "x\n"}, "a node type needs a name"),
        ({"name": "x", "gpu": 1}, "the node type x has 'gpu'; it may have name, cpus"),
        ({"name": "x", "cpus": -1}, "the node type x: cpus must not be negative"),
        ({"name": "x", "cpus": "many"}, "the node type x: cpus must be a number"),
        ({"name": "x", "memory": "much"}, "the node type x: 'much' is not an amount of memory"),
        ({"name": "x", "gpus": 0.5}, "the node type x: gpus must be a whole number"),
        ({"name": "x", "gpus": 10**9}, "the node type x: gpus must be a whole number"),
        ({"name": "x", "gpus": True}, "the node type x: gpus must be a whole number"),
        ({"name": "x", "labels": ["a"]}, "the node type x: labels must map names to values"),
        ({"name": "x", "taints": 3}, "the node type x: taints must be a list of names"),
        ({"name": "x", "taints": "gpu"}, "the node type x: taints must be a list of names"),
        ({"name": "x", "gpu_model": 3}, "the node type x: gpu_model must be text"),
        ({"name": "x", "limit": -1, "labels": {"a": "b"}}, "the node type x: limit must not be negative"),
        ({"name": "x", "limit": 2}, "the node type x has a limit: it needs labels"),
    ],
)
def test_a_wrong_entry_gets_one_sentence(entry: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        make_node_types([entry])
    with pytest.raises(TraitError, match="node_types: "):
        RoostKubernetesBackend(node_types=[entry])


def test_two_types_have_two_names() -> None:
    with pytest.raises(ValueError, match="two node types are called 'a100'"):
        make_node_types([A100, A100])
