"""Ray's autoscaler, of which there are two: whether one runs, and what nodes it can start.

Ray's GCS says which of them runs. It does not know the kinds of nodes and their limits. These are in
a file on the head, which a Ray task reads there. All functions that ask Ray block for milliseconds, so call them in a
thread.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from roost.placement import Device, Node, NodeType

from .agent_task import build_task_on
from .nodes import MODEL_LABEL, MODEL_RESOURCE, TYPE_LABEL, RayNode, find_custom_resources

log = logging.getLogger(__name__)

Kind = Literal["", "first", "second"]
"""Which of Ray's autoscalers a cluster has. Empty: none."""

_KEY, _NAMESPACE = b"__autoscaler_v2_enabled", b"__autoscaler"
"""Where Ray notes which autoscaler a cluster would have, also if it has none."""
_STATUS = b"__autoscaling_status"
"""Where the first autoscaler writes its state, as JSON."""
_READ_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the head's files say about the autoscaler.

    `has_monitor` is False if Ray's monitor runs elsewhere, as in KubeRay. `types` are None without a file.
    """

    has_monitor: bool
    types: tuple[NodeType, ...] | None
    marked_models: frozenset[str] = frozenset()
    """The GPU models that a type has as a resource, and not only as a label."""
    most_nodes: int | None = None
    """How many nodes of all types together there may be, besides the head."""


def find_kind() -> Kind:
    """Return which autoscaler has reported its state. A monitor that cannot start nodes reports too."""
    try:
        from ray.experimental.internal_kv import _internal_kv_get

        if _internal_kv_get(_KEY, namespace=_NAMESPACE) == b"1":
            return "second" if _read_second().autoscaler_state_version else ""
        return "first" if _internal_kv_get(_STATUS) else ""
    except (ImportError, AttributeError, TypeError) as problem:
        log.debug("this Ray does not tell of its autoscaler: %s", problem)
        return ""


def _read_second() -> Any:
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    content = global_worker.gcs_client.get_cluster_status(timeout_s=_READ_S)
    return GetClusterStatusReply.FromString(content).autoscaling_state


def read_on(head: RayNode, address: str) -> Any:
    """Start a Ray task on the head that reads its files; return the Ray reference to what `decode` takes.

    `address` is that of the cluster's GCS. The head's machine may have monitors of other clusters too.
    """
    return build_task_on(head, _read_files).remote(address)


def _read_files(address: str) -> dict[str, Any]:
    """Return what the monitor's file says about nodes, and nothing else of it. Runs on the head."""
    monitor = _find_monitor(address, _list_commands())
    found: dict[str, Any] = {"has_monitor": monitor is not None, "config": None}
    if monitor is not None and (path := monitor.get("--autoscaling-config")):
        import yaml

        config = yaml.safe_load(Path(path).expanduser().read_text())
        kept = ("resources", "labels", "max_workers")
        types = config.get("available_node_types") or {}
        found["config"] = {name: config.get(name) for name in ("head_node_type", "max_workers")}
        found["config"]["available_node_types"] = {
            name: {key: each.get(key) for key in kept} for name, each in types.items()
        }
    return found


def _list_commands() -> list[list[str]]:
    """Return the command lines of this machine's processes, as far as they may be read."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(process.read_bytes().decode(errors="replace").split("\0"))
        except OSError:
            continue
    return found


def _find_monitor(address: str, commands: list[list[str]]) -> dict[str, str] | None:
    """Return the options of the monitor of the cluster at `address`, or None. A name may stand for its host."""
    monitors = [
        dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        for words in commands
        if any(word.endswith("/monitor.py") for word in words)
    ]
    gcs, port = "--gcs-address", f":{address.rpartition(':')[2]}"
    same = [monitor for monitor in monitors if monitor.get(gcs) == address]
    return next(iter(same or [monitor for monitor in monitors if monitor.get(gcs, "").endswith(port)]), None)


def decode(answer: Mapping[str, Any]) -> Description:
    """Return what `read_on`'s task has found. Raises `ValueError` for a file that does not list node types."""
    config = answer["config"]
    if config is None:
        return Description(has_monitor=answer["has_monitor"], types=None)
    most = config.get("max_workers")
    types, marked = [], set[str]()
    try:
        for name, each in config["available_node_types"].items():
            if name == config.get("head_node_type"):
                continue
            resources = {key: float(amount) for key, amount in (each.get("resources") or {}).items()}
            marks = [key.removeprefix(MODEL_RESOURCE) for key in resources if key.startswith(MODEL_RESOURCE)]
            marked.update(marks)
            limit = each.get("max_workers")
            node = _build_empty(name, resources, each.get("labels") or {}, marks)
            types.append(NodeType(node=node, limit=most if limit is None else limit))
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"the autoscaler's file cannot be read: {problem!r:.200}") from None
    return Description(
        has_monitor=True,
        types=tuple(types),
        marked_models=frozenset(marked),
        most_nodes=most,
    )


def _build_empty(
    name: str, resources: Mapping[str, float], labels: Mapping[str, Any], models: Sequence[str]
) -> Node:
    labels = {str(key): str(value) for key, value in labels.items()}
    model = labels.get(MODEL_LABEL) or next(iter(models), "")
    gpus = range(int(resources.get("GPU", 0)))
    return Node(
        id=name,
        cpus=resources.get("CPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
        devices=tuple(Device(id=str(number), model=model) for number in gpus),
        resources={key: resources[key] for key in find_custom_resources(resources)},
        labels={**labels, TYPE_LABEL: name},
    )


def count(
    types: Iterable[NodeType], nodes: Collection[RayNode], *, most_nodes: int | None
) -> tuple[NodeType, ...]:
    """Return the types with their nodes that run.

    A type's limit is lower if all types together would have more nodes than `most_nodes`.
    """
    counted = [replace(each, running=sum(is_of(node, each) for node in nodes)) for each in types]
    if most_nodes is None:
        return tuple(counted)
    left = max(0, most_nodes - sum(each.running for each in counted))
    return tuple(
        replace(each, limit=min(most_nodes if each.limit is None else each.limit, each.running + left))
        for each in counted
    )


def is_of(node: RayNode, node_type: NodeType) -> bool:
    """True if a node is of this type: by the name that Ray gives, or by the labels that an operator has written."""
    labels = node_type.node.labels
    if TYPE_LABEL in labels:
        return node.labels.get(TYPE_LABEL) == node_type.name
    return bool(labels) and labels.items() <= node.labels.items()
