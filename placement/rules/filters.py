"""The filters of all shipped policies. Each refuses nodes for one reason, and gives the reason with figures."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from roost.placement.model import EPSILON, Node, Request
from roost.placement.model.format import format_amount, format_bytes, format_count
from roost.placement.tables.snapshot import BoolArray, Snapshot

from .refusals import BY_OPERATOR

_EXACT = 2**53
"""Whole numbers below this are exact as floats."""


class Filter(Protocol):
    """A rule that refuses nodes for one reason. A node that it refuses even when empty is refused as *never*.

    >>> class Quiet:
    ...     name = "quiet"
    ...     def passes(self, request, snapshot):
    ...         return snapshot.columns.kernels < 2
    ...     def reason(self, request, node):
    ...         return f"runs {node.kernels} kernels"
    >>> from roost.placement import Node, Pipeline, Request, Snapshot
    >>> quiet = Pipeline(name="quiet", filters=(Quiet(),), scorers=())
    >>> quiet.place(Request(), Snapshot.of([Node(id="a", kernels=2)])).refusals[0].reason
    'runs 2 kernels'
    """

    @property
    def name(self) -> str: ...

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        """Return (n_nodes,) True if the node passes, or None if all pass.

        A node's answer must depend on that node alone: the snapshot may hold only some of the cluster's nodes.
        """
        ...

    def reason(self, request: Request, node: Node) -> str:
        """Return why this node, which did not pass, is refused: a predicate such as ``needs 1 GPU, 0.25 free``."""
        ...


class NotDraining:
    name = "draining"

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        stays = snapshot.is_everywhere("stays", lambda node: not node.is_draining)
        return None if stays else ~snapshot.columns.is_draining

    def reason(self, request: Request, node: Node) -> str:
        return node.drains_because or BY_OPERATOR


class HasLabels:
    name = "labels"

    def applies(self, request: Request) -> bool:
        return bool(request.labels)

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        return snapshot.has_labels(request.labels.items()) if request.labels else None

    def reason(self, request: Request, node: Node) -> str:
        name, value = next((k, v) for k, v in sorted(request.labels.items()) if node.label(k) != v)
        has = f"has no label {name}" if node.label(name) is None else f"has {name}={node.label(name)}"
        return f"needs label {name}={value}, {has}"


class Tolerates:
    """A filter that refuses nodes with a taint that the request does not tolerate."""

    name = "taints"

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        if snapshot.is_everywhere("untainted", lambda node: not node.taints):
            return None
        tolerated = frozenset(request.tolerates)
        return snapshot.mask(("taints", tolerated), lambda node: tolerated.issuperset(node.taints))

    def reason(self, request: Request, node: Node) -> str:
        taint = next(taint for taint in node.taints if taint not in request.tolerates)
        return f"is kept for kernels that tolerate {taint}"


class HasGpus:
    """A filter that refuses nodes without enough free devices of the accepted models.

    The node's sum of free GPUs must suffice too, because some promises are known only as a sum over the node.
    """

    name = "gpu"

    def least(self, request: Request) -> dict[str, float] | None:
        """Return the least free amounts with which a node passes, or None if free amounts alone do not decide.

        ``device_free`` is the share that must be free on each of as many accepted devices as the request asks for.
        """
        if request.gpu_memory_bytes or request.visible_gpus is not None:
            return None  # the columns have neither the memory nor the names of devices
        if not request.gpus:
            return {}
        return {"gpus_free": request.gpus - EPSILON, "device_free": request.gpu_share - EPSILON}

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        if not request.gpus:
            return None
        fitting = find_fitting_devices(request, snapshot)
        enough: BoolArray = np.add.reduce(fitting, axis=1) >= request.gpu_count
        return enough & (snapshot.columns.gpus_free >= request.gpus - EPSILON)

    def reason(self, request: Request, node: Node) -> str:
        accepted = [device for device in node.devices if request.accepts(device)]
        needs = f"needs {request.describe_gpus()}"
        if len(accepted) < request.gpu_count:
            unknown = sum(not d.memory_bytes and request.accepts_model(d.model) for d in node.devices)
            hint = f" ({unknown} of unknown memory)" if request.gpu_memory_bytes and unknown else ""
            return f"{needs}, has {len(accepted) or 'none'}{hint}"
        if len(node.fitting_devices(request)) >= request.gpu_count:
            return f"{needs}, {format_amount(max(node.gpus_free, 0))} free"
        if request.gpus <= 1:
            most = max(device.free for device in accepted)
            where = " on the freest" if len(accepted) > 1 else ""
            return f"{needs}, {format_amount(max(most, 0))} free{where}"
        return f"{needs}, {len(node.fitting_devices(request))} wholly free"


class HasMemory:
    name = "memory"

    def least(self, request: Request) -> dict[str, float] | None:
        if request.memory_bytes >= _EXACT:
            return None
        return {"memory_free_bytes": request.memory_bytes} if request.memory_bytes else {}

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        return snapshot.columns.memory_free_bytes >= request.memory_bytes if request.memory_bytes else None

    def reason(self, request: Request, node: Node) -> str:
        needs = f"needs {format_bytes(request.memory_bytes)} memory"
        if node.memory_bytes < request.memory_bytes:
            return f"{needs}, has {format_bytes(node.memory_bytes)}"
        return f"{needs}, {format_bytes(max(node.memory_free_bytes, 0))} free"


class HasCpus:
    name = "cpu"

    def least(self, request: Request) -> dict[str, float]:
        return {"cpus_free": request.cpus - EPSILON} if request.cpus else {}

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        return snapshot.columns.cpus_free >= request.cpus - EPSILON if request.cpus else None

    def reason(self, request: Request, node: Node) -> str:
        needs = f"needs {format_count(request.cpus, 'CPU')}"
        if node.cpus < request.cpus - EPSILON:
            return f"{needs}, has {format_amount(node.cpus)}"
        return f"{needs}, {format_amount(max(node.cpus_free, 0))} free"


class HasResources:
    """A filter that refuses nodes without enough of a custom resource."""

    name = "resources"

    def applies(self, request: Request) -> bool:
        return bool(request.resources)

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        enough: BoolArray | None = None
        for name, asked in request.resources.items():
            has = snapshot.resource_free(name) >= asked - EPSILON
            enough = has if enough is None else enough & has
        return enough

    def reason(self, request: Request, node: Node) -> str:
        free = {name: node.resource_free(name) for name in request.resources}
        short = [name for name, asked in request.resources.items() if free[name] < asked - EPSILON]
        enough, name = min(
            (node.resources.get(name, 0.0) >= request.resources[name] - EPSILON, name) for name in short
        )
        needs = f"needs {format_amount(request.resources[name])} {name}"
        if enough:  # on the empty node; a resource that even the empty node lacks comes first
            return f"{needs}, {format_amount(max(free[name], 0))} free"
        return f"{needs}, has {format_amount(node.resources[name]) if node.resources.get(name) else 'none'}"


def find_fitting_devices(request: Request, snapshot: Snapshot) -> BoolArray:
    """Return (n, d) True for each device that the request accepts and that has the request's share free."""
    fitting: BoolArray = snapshot.columns.device_free >= request.gpu_share - EPSILON
    if request.gpu_models:
        fitting = fitting & snapshot.accepted_devices(request)
    if request.gpu_memory_bytes or request.visible_gpus is not None:
        for row in np.flatnonzero(fitting.any(axis=1)).tolist():  # the nodes that could fit
            devices = snapshot.at(row).devices
            fitting[row, : len(devices)] &= [request.accepts(device) for device in devices]
    return fitting
