"""From the API's nodes and pods to placement's nodes. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from roost.placement.model import Device, Node

from .api import JsonObject
from .quantity import parse_quantity

_MODEL_LABELS = (
    "nvidia.com/gpu.product",
    "cloud.google.com/gke-accelerator",
    "k8s.amazonaws.com/accelerator",
    "kubernetes.azure.com/accelerator",
    "amd.com/gpu.product-name",
)
_MEMORY_LABEL = "nvidia.com/gpu.memory"
"""In MiB, of one GPU."""
_OWN_TAINTS = (
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
)
"""Taints for what the node's status says too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodUse:
    """The resources that one pod takes from its node. `is_ours`: the pod is a lease of this service."""

    node_id: str
    cpus: float
    memory_bytes: int
    gpus: float
    is_ours: bool


def read_node(raw: JsonObject, gpu_resource: str) -> Node:
    """Return a node without promises."""
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
    """Return what a pod takes from its node; None if it has no node or has ended."""
    spec = raw["spec"]
    if not spec.get("nodeName") or raw.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return None
    cpus, memory, gpus = (sum_requests(spec, name) for name in ("cpu", "memory", gpu_resource))
    return PodUse(node_id=spec["nodeName"], cpus=cpus, memory_bytes=int(memory), gpus=gpus, is_ours=is_ours)


def sum_requests(spec: Mapping[str, Any], resource: str) -> float:
    """Return a pod's request for a resource: of all containers, or of the largest init container, plus the overhead."""

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


def with_promises(nodes: Iterable[Node], uses: Iterable[PodUse]) -> list[Node]:
    """Return the nodes with what pods take from them. A node may be promised too much by others."""
    sums: dict[str, list[float]] = {}
    for use in uses:
        total = sums.setdefault(use.node_id, [0.0, 0.0, 0.0])
        total[0] += use.cpus
        total[1] += use.memory_bytes
        total[2] += use.gpus
    return [
        replace(
            node,
            cpus_promised=round(sums[node.id][0], 6),
            memory_promised_bytes=int(sums[node.id][1]),
            gpus_promised=sums[node.id][2],
        )
        if node.id in sums
        else node
        for node in nodes
    ]


def _describe_trouble(status: Mapping[str, Any]) -> str:
    """Return a predicate that says why a node takes no pods; empty if it does."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] != "True":
            is_silent = condition["status"] == "Unknown"
            return (
                "does not answer Kubernetes" if is_silent else f"is not ready ({condition.get('reason', '')})"
            )
    return ""
