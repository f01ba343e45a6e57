"""The kinds of nodes that a cluster could start, as its operator writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from roost.placement.model import Device, Node, NodeType
from roost.placement.model.memory_size import read_bytes

if TYPE_CHECKING:
    from roost.placement import Snapshot  # which imports numpy, but settings are read in applications too

_KEYS = (
    "name",
    "cpus",
    "memory",
    "gpus",
    "gpu_model",
    "gpu_memory",
    "resources",
    "labels",
    "taints",
    "limit",
)
_MOST_GPUS = 1_024


def make_node_types(entries: Sequence[Mapping[str, Any]]) -> tuple[NodeType, ...]:
    """Return the types that a setting lists. Raises `ValueError` with a sentence about the first wrong one.

    An entry is such as `{"name": "a100", "cpus": 8, "memory": "32GiB", "gpus": 2, "labels": {"pool": "a100"},
    "limit": 3}`. The labels tell which nodes are of the type.
    """
    types = [_make_type(entry) for entry in entries]
    names = [each.name for each in types]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"two node types are called {twice!r:.80}: give each its own name")
    return tuple(types)


def _make_type(entry: Mapping[str, Any]) -> NodeType:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ValueError(f"a node type needs a name; got {dict(entry)!r:.120}")
    if unknown := next((key for key in entry if key not in _KEYS), ""):
        raise ValueError(f"the node type {name:.80} has {unknown!r:.80}; it may have {', '.join(_KEYS)}")
    try:
        gpus = entry.get("gpus", 0)
        if type(gpus) is not int or not 0 <= gpus <= _MOST_GPUS:
            raise ValueError(f"gpus must be a whole number up to {_MOST_GPUS}; got {gpus!r:.80}.")
        model = entry.get("gpu_model", "")
        if not isinstance(model, str):
            raise ValueError(f"gpu_model must be text; got {model!r:.80}.")
        device = Device(id="0", model=model, memory_bytes=read_bytes(entry.get("gpu_memory", 0)))
        node = Node(
            id=name,
            cpus=entry.get("cpus", 0),
            memory_bytes=read_bytes(entry.get("memory", 0)),
            devices=tuple(replace(device, id=str(number)) for number in range(gpus)),
            resources=entry.get("resources", {}),
            labels=entry.get("labels", {}),
            taints=entry.get("taints", ()),
        )
        node_type = NodeType(node=node, limit=entry.get("limit"))
    except ValueError as problem:
        raise ValueError(f"the node type {name:.80}: {str(problem).rstrip('.')}") from None
    if node_type.limit is not None and not node.labels:
        raise ValueError(
            f"the node type {name:.80} has a limit: it needs labels, which tell its nodes from others"
        )
    return node_type


def count_nodes(types: Sequence[NodeType], snapshot: Snapshot) -> list[NodeType]:
    """Return the types with the numbers of their nodes in a snapshot."""
    return [
        replace(each, running=int(snapshot.has_labels(each.node.labels.items()).sum()))
        if each.node.labels
        else each
        for each in types
    ]
