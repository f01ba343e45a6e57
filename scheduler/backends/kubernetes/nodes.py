"""Builds the nodes for placement from the nodes and pods that the API shows."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from roost.placement.model import Device, Node

from .api import JsonObject
from .metrics import Use
from .quantity import parse_quantity

_MODEL_LABELS = (
    "nvidia.com/gpu.product",
    "cloud.google.com/gke-accelerator",
    "k8s.amazonaws.com/accelerator",
    "kubernetes.azure.com/accelerator",
    "amd.com/gpu.product-name",
)
_MEMORY_LABEL = "nvidia.com/gpu.memory"
"""The label with the memory of one GPU, in MiB."""
_OWN_TAINTS = (
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
)
"""Taints that repeat the node's status. roost shows such a node as draining instead."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PodUse:
    """The resources that one pod takes from its node. `is_ours`: the pod is a lease of this service."""

    node_id: str
    cpus: float
    memory_bytes: int
    gpus: float
    is_ours: bool


def read_node(raw: JsonObject, gpu_resource: str) -> Node:
    """Return the node with nothing promised, because pods are counted elsewhere (see `NodeBook`)."""
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    labels = dict(metadata.get("labels", {}))
    has = status.get("allocatable", {})
    model = next((labels[name] for name in _MODEL_LABELS if labels.get(name)), "")
    gpu_memory = labels.get(_MEMORY_LABEL, "")
    addresses = {one["type"]: one["address"] for one in status.get("addresses", ())}
    drains_because = _describe_trouble(status)
    return Node(
        id=metadata["name"],
        address=addresses.get("InternalIP", ""),
        labels=labels,
        cpus=parse_quantity(has.get("cpu", 0)),
        memory_bytes=int(parse_quantity(has.get("memory", 0))),
        devices=tuple(
            Device(
                id=str(number),
                model=model,
                memory_bytes=int(gpu_memory) * 2**20 if gpu_memory.isdigit() else 0,
            )
            for number in range(int(parse_quantity(has.get(gpu_resource, 0))))
        ),
        taints=tuple(
            format_taint(taint)
            for taint in spec.get("taints", ())
            if taint.get("effect") in ("NoSchedule", "NoExecute") and taint["key"] not in _OWN_TAINTS
        ),
        is_draining=bool(spec.get("unschedulable")) or bool(drains_because),
        drains_because=drains_because,
    )


def format_taint(taint: Mapping[str, Any]) -> str:
    """Return the name by which a request tolerates a taint: `key` or `key=value`."""
    return f"{taint['key']}={taint['value']}" if taint.get("value") else str(taint["key"])


def read_use(raw: JsonObject, gpu_resource: str, is_ours: bool) -> PodUse | None:
    """Return the resources that a pod takes from its node; None if the pod has no node or has ended."""
    spec = raw["spec"]
    if not spec.get("nodeName") or raw.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return None
    cpus, memory, gpus = (sum_requests(spec, name) for name in ("cpu", "memory", gpu_resource))
    node_id = sys.intern(spec["nodeName"])  # many pods share it
    return PodUse(node_id=node_id, cpus=cpus, memory_bytes=int(memory), gpus=gpus, is_ours=is_ours)


def sum_requests(spec: Mapping[str, Any], resource: str) -> float:
    """Return a pod's request for a resource.

    It is the larger of two amounts, that of all containers together and that of the largest init container,
    plus the pod's overhead.
    """

    def asked(container: Mapping[str, Any]) -> float:
        return parse_quantity(container.get("resources", {}).get("requests", {}).get(resource, 0))

    running = sum(map(asked, spec.get("containers", ())))
    sidecars = 0.0
    largest = 0.0
    for container in spec.get("initContainers", ()):
        if container.get("restartPolicy") == "Always":
            sidecars += asked(container)
            largest = max(largest, sidecars)
        else:
            largest = max(largest, sidecars + asked(container))
    overhead = parse_quantity(spec.get("overhead", {}).get(resource, 0))
    return max(running + sidecars, largest) + overhead


class NodeBook:
    """The nodes, with the amounts that pods take from them. Each change updates the sums.

    `nodes` rebuilds only the nodes that have changed since its last call. The promised amounts may exceed
    those of the node.
    """

    def __init__(self) -> None:
        self._bare: dict[str, Node] = {}
        self._sums: dict[str, list[int]] = {}
        """By node: the CPUs in millionths, the bytes, the GPUs in millionths. Whole numbers add up exactly."""
        self._built: dict[str, Node] = {}
        self._uses: Mapping[str, Use] = {}
        self._differs: set[str] = set()

    def set_node(self, before: Node | None, after: Node | None) -> None:
        """Note that a node is new, differs, or is gone."""
        if before is not None:
            self._bare.pop(before.id, None)
            self._differs.add(before.id)
        if after is not None:
            self._bare[after.id] = after
            self._differs.add(after.id)

    def add(self, use: PodUse, sign: int = 1) -> None:
        """Add the resources of a pod to the sums of its node. Subtract them if `sign` is -1."""
        total = self._sums.setdefault(use.node_id, [0, 0, 0])
        total[0] += sign * round(use.cpus * _MILLION)
        total[1] += sign * use.memory_bytes
        total[2] += sign * round(use.gpus * _MILLION)
        if not any(total):
            del self._sums[use.node_id]
        self._differs.add(use.node_id)

    def set_uses(self, uses: Mapping[str, Use]) -> None:
        """Note the real use of the nodes, by name."""
        self._differs |= self._uses.keys() | uses.keys()
        self._uses = uses

    def nodes(self) -> list[Node]:
        """Return all nodes. A node that does not differ is the same object as the last time."""
        for name in self._differs:
            bare, total = self._bare.get(name), self._sums.get(name)
            if bare is None:
                self._built.pop(name, None)
                continue
            if total is not None:
                bare = replace(
                    bare,
                    cpus_promised=total[0] / _MILLION,
                    memory_promised_bytes=total[1],
                    gpus_promised=total[2] / _MILLION,
                )
            use = self._uses.get(name)
            self._built[name] = bare if use is None else use.add_to(bare)
        self._differs.clear()
        return list(self._built.values())


def _describe_trouble(status: Mapping[str, Any]) -> str:
    """Return why a node takes no pods, as the predicate of a sentence about the node; empty if it takes pods."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] != "True":
            is_silent = condition["status"] == "Unknown"
            return (
                "does not answer Kubernetes" if is_silent else f"is not ready ({condition.get('reason', '')})"
            )
    return ""
