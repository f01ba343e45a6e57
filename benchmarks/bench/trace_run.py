"""A run of a trace, to compare policies: a policy places a stream of requests on a snapshot.

The kernel of each request ends after its duration. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from roost.placement import Node, Placement, Policy, Request, Snapshot
from roost.placement.model import EPSILON

Resource = Literal["gpus", "cpus", "memory_bytes"]
"""The resource in which demand is counted."""
RESOURCE_NAMES: dict[Resource, str] = {"gpus": "GPUs", "cpus": "CPUs", "memory_bytes": "memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request that arrives at ``at_s``, in seconds from any start. Without ``duration_s``, its kernel never ends."""

    request: Request
    at_s: float = 0.0
    duration_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRun:
    """The result of `run_trace`. Amounts are in the unit of the resource.

    ``at_100`` is the amount that was promised when the requests had reached the capacity, or None if they never did.
    ``at_end`` is the amount that was promised when the last request had arrived.
    """

    capacity: float
    requests: int
    placed_requests: int
    arrived: float
    placed: float
    at_100: float | None
    at_end: float
    last: Snapshot

    @property
    def refused_requests(self) -> int:
        return self.requests - self.placed_requests

    @property
    def refused(self) -> float:
        return self.arrived - self.placed


def run_trace(
    policy: Policy, snapshot: Snapshot, arrivals: Iterable[Arrival], *, resource: Resource = "gpus"
) -> TraceRun:
    """Let a policy place the arrivals in order, each on the cluster as the earlier ones left it.

    A refused request is not tried again. A placement that the node cannot hold counts as refused. Raises ``ValueError``
    if the cluster has none of the resource, and every error of the policy.

    >>> from roost.placement import Node, get_policy
    >>> one = Snapshot.of([Node(id="a", cpus=4)])
    >>> arrivals = [Arrival(request=Request(cpus=3)), Arrival(request=Request(cpus=3))]
    >>> run_trace(get_policy("pack"), one, arrivals, resource="cpus").placed_requests
    1
    """
    capacity = float(getattr(snapshot.columns, resource).sum())
    if not capacity:
        raise ValueError(f"the cluster has no {RESOURCE_NAMES[resource]}, in which demand is counted.")
    requests = placed_requests = 0
    arrived = placed = held = 0.0
    at_100: float | None = None
    ends: list[tuple[float, int, str, Request, tuple[str, ...]]] = []
    for arrival in arrivals:
        nodes: dict[str, Node] = {}
        while ends and ends[0][0] <= arrival.at_s:
            _, _, node_id, request, devices = heapq.heappop(ends)
            node = nodes.get(node_id) or snapshot.node(node_id)
            nodes[node_id] = node.without_kernel(request, devices)
            held -= getattr(request, resource)
        if nodes:
            snapshot = snapshot.apply(nodes.values())
        request, amount = arrival.request, float(getattr(arrival.request, resource))
        placement = policy.place(request, snapshot).placement
        requests, arrived = requests + 1, arrived + amount
        chosen = None if placement is None else _assign_devices(request, snapshot, placement)
        if placement is not None and chosen is not None:
            node_id = placement.node_id
            snapshot = snapshot.apply([snapshot.node(node_id).with_kernel(request, chosen)])
            placed_requests, placed, held = placed_requests + 1, placed + amount, held + amount
            if arrival.duration_s is not None:
                end_s = arrival.at_s + arrival.duration_s
                heapq.heappush(ends, (end_s, requests, node_id, request, chosen))
        if at_100 is None and arrived >= capacity * (1 - EPSILON):
            at_100 = held
    return TraceRun(
        capacity=capacity,
        requests=requests,
        placed_requests=placed_requests,
        arrived=arrived,
        placed=placed,
        at_100=at_100,
        at_end=held,
        last=snapshot,
    )


def draw_arrivals_to_demand(
    requests: Sequence[Request], capacity: float, ratio: float, seed: int, resource: Resource = "gpus"
) -> list[Arrival]:
    """Return the requests in random order. Together they ask for about ``ratio`` times the capacity (FGD, ATC '23).

    If all requests together ask for more, random ones are left out. If they ask for less, random ones are repeated.
    Raises ``ValueError`` if no request asks for the resource.
    """
    if not any(getattr(request, resource) for request in requests):
        raise ValueError(f"the trace asks for no {RESOURCE_NAMES[resource]}, in which demand is counted.")
    source = random.Random(seed)
    stream = list(requests)
    source.shuffle(stream)
    total, target = sum(getattr(request, resource) for request in stream), capacity * ratio
    while total > target:
        total -= getattr(stream.pop(source.randrange(len(stream))), resource)
    while True:
        drawn = requests[source.randrange(len(requests))]
        if total + getattr(drawn, resource) > target:
            break
        stream.append(drawn)
        total += getattr(drawn, resource)
    return [Arrival(request=request, at_s=float(at)) for at, request in enumerate(stream)]


def empty_node(node: Node) -> Node:
    """Return the node without kernels, with fresh metrics that show no use."""
    node = node.as_empty()
    devices = tuple(replace(device, used=0.0, memory_used_bytes=None) for device in node.devices)
    return replace(node, devices=devices, cpus_used=0.0, memory_used_bytes=0, metrics_age_s=0.0)


def _assign_devices(request: Request, snapshot: Snapshot, placement: Placement) -> tuple[str, ...] | None:
    """Return the placement's devices, or the first that fit if it names none. Return None if the node has no room."""
    if placement.node_id not in snapshot:
        return None
    node = snapshot.node(placement.node_id)
    fitting = [device.id for device in node.fitting_devices(request)] if request.gpus else []
    devices = placement.device_ids or tuple(fitting[: request.gpu_count])
    holds = (
        node.cpus_free >= request.cpus - EPSILON
        and node.memory_free_bytes >= request.memory_bytes
        and node.gpus_free >= request.gpus - EPSILON
        and all(node.resource_free(name) >= asked - EPSILON for name, asked in request.resources.items())
        and len(set(devices)) == request.gpu_count
        and set(devices) <= set(fitting)
    )
    return devices if holds else None
