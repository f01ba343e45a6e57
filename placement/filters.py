"""The filters of every shipped policy. Each refuses nodes for one reason, and can say so with figures."""

from __future__ import annotations

import numpy as np

from .decision import Refusal
from .snapshot import BoolArray, Snapshot
from .text import amount, plural, size
from .values import EPSILON, Node, Request


class NotDraining:
    """Refuses nodes on which placing has been stopped."""

    name = "draining"

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        return ~snapshot.columns.is_draining

    def refuse(self, request: Request, node: Node) -> Refusal:
        return Refusal(node_id=node.id, filter=self.name, reason="is draining", when="now")


class HasLabels:
    """Refuses nodes that lack any of the labels asked for."""

    name = "labels"

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        return snapshot.has_labels(request.labels.items())

    def refuse(self, request: Request, node: Node) -> Refusal:
        name, value = next((k, v) for k, v in sorted(request.labels.items()) if node.labels.get(k) != v)
        has = f"has {name}={node.labels[name]}" if name in node.labels else f"has no label {name}"
        return Refusal(
            node_id=node.id, filter=self.name, reason=f"needs label {name}={value}, {has}", when="never"
        )


class HasGpus:
    """Refuses nodes without enough free devices of the models asked for.

    A share must be free on one device; a whole number needs that many wholly free devices; and the node's sum
    must suffice too, since what others hold may be known only as a sum.
    """

    name = "gpu"

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        columns = snapshot.columns
        if not request.gpus:
            return np.ones(len(snapshot), dtype=bool)
        fitting = (columns.device_free >= request.gpu_share - EPSILON) & snapshot.accepted_devices(request)
        enough: BoolArray = fitting.sum(axis=1) >= request.gpu_count
        return enough & (columns.gpus_free >= request.gpus - EPSILON)

    def refuse(self, request: Request, node: Node) -> Refusal:
        model = f" of model {' or '.join(request.gpu_models)}" if request.gpu_models else ""
        accepted = [device for device in node.devices if request.accepts_model(device.model)]
        needs = f"needs {plural(request.gpus, 'GPU')}{model}"
        if len(accepted) < request.gpu_count:
            has = f"has {len(accepted) or 'none'}"
            return Refusal(node_id=node.id, filter=self.name, reason=f"{needs}, {has}", when="never")
        if len(node.fitting(request)) >= request.gpu_count:
            free = f"{amount(max(node.gpus_free, 0))} free"
        elif request.gpus <= 1:
            most = max(device.free for device in accepted)
            free = f"{amount(max(most, 0))} free" + (" on the freest" if len(accepted) > 1 else "")
        else:
            free = f"{len(node.fitting(request))} wholly free"
        return Refusal(node_id=node.id, filter=self.name, reason=f"{needs}, {free}", when="now")


class HasMemory:
    """Refuses nodes whose memory is promised to others."""

    name = "memory"

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        if not request.memory_bytes:
            return np.ones(len(snapshot), dtype=bool)
        return snapshot.columns.memory_free_bytes >= request.memory_bytes

    def refuse(self, request: Request, node: Node) -> Refusal:
        needs = f"needs {size(request.memory_bytes)} memory"
        if node.memory_bytes < request.memory_bytes:
            return Refusal(
                node_id=node.id,
                filter=self.name,
                reason=f"{needs}, has {size(node.memory_bytes)}",
                when="never",
            )
        free = size(max(node.memory_free_bytes, 0))
        return Refusal(node_id=node.id, filter=self.name, reason=f"{needs}, {free} free", when="now")


class HasCpus:
    """Refuses nodes whose CPUs are promised to others."""

    name = "cpu"

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        if not request.cpus:
            return np.ones(len(snapshot), dtype=bool)
        return snapshot.columns.cpus_free >= request.cpus - EPSILON

    def refuse(self, request: Request, node: Node) -> Refusal:
        needs = f"needs {plural(request.cpus, 'CPU')}"
        if node.cpus < request.cpus - EPSILON:
            return Refusal(
                node_id=node.id, filter=self.name, reason=f"{needs}, has {amount(node.cpus)}", when="never"
            )
        free = amount(max(node.cpus_free, 0))
        return Refusal(node_id=node.id, filter=self.name, reason=f"{needs}, {free} free", when="now")
