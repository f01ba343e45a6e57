"""A simulation, to compare policies: a policy places a stream of requests on a snapshot.

The kernel of each request ends after its duration. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .decision import Placement
from .model import EPSILON, Node, Request
from .pipeline import Policy
from .rules.workload import MILLI, Workload
from .tables.snapshot import Snapshot

Resource = Literal["gpus", "cpus", "memory_bytes"]
"""The resource in which demand is counted."""
RESOURCE_NAMES: dict[Resource, str] = {"gpus": "GPUs", "cpus": "CPUs", "memory_bytes": "memory"}
_FREE = {"gpus": "gpus_free", "cpus": "cpus_free", "memory_bytes": "memory_free_bytes"}
_FRAGMENTATION_EVERY = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request that arrives at ``at_s``, in seconds from any start. Without ``duration_s``, its kernel never ends."""

    request: Request
    at_s: float = 0.0
    duration_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePoint:
    """The state at one moment of a run, in percent of the cluster's capacity."""

    arrived: float
    """The sum of all requests since the start."""
    allocated: float
    """The amount promised now."""
    refused: float
    """The sum of the refused requests since the start."""
    fragmented: float | None = None
    """The free GPUs that a typical request cannot use, or None if they were not computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRun:
    """The result of `run_trace`. Amounts are in the unit of ``resource``.

    The keys of ``points`` are the demand that had arrived, in whole percent of the capacity.
    """

    policy: str
    resource: Resource
    capacity: float
    requests: int
    placed_requests: int
    arrived: float
    placed: float
    points: dict[int, TracePoint]
    last: Snapshot

    @property
    def refused_requests(self) -> int:
        return self.requests - self.placed_requests

    @property
    def refused(self) -> float:
        return self.arrived - self.placed

    def allocation(self, percent: int) -> float | None:
        """Return how much was promised when the arrived demand reached ``percent``; None if it never did.

        Both are in percent of the capacity.
        """
        point = self.points.get(percent)
        return None if point is None else point.allocated


def run_trace(
    policy: Policy,
    snapshot: Snapshot,
    arrivals: Iterable[Arrival],
    *,
    resource: Resource = "gpus",
    workload: Workload | None = None,
) -> TraceRun:
    """Let a policy place the arrivals in order, each on the cluster as the earlier ones left it.

    A refused request is not tried again. A placement that the node cannot hold counts as refused. With a ``workload``
    and GPUs as the resource, fragmentation is computed at every 5 percent of demand, in O(nodes). Raises ``ValueError``
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
    held = capacity - float(np.maximum(getattr(snapshot.columns, _FREE[resource]), 0).sum())
    requests = placed_requests = 0
    arrived = placed = 0.0
    points: dict[int, TracePoint] = {}
    ends: list[tuple[float, int, str, Request, tuple[str, ...]]] = []

    def note(percent: int) -> None:
        share = 100.0 / capacity
        fragmented = None
        if workload is not None and resource == "gpus" and percent % _FRAGMENTATION_EVERY == 0:
            fragmented = measure_fragmentation(workload, snapshot) * share
        points[percent] = TracePoint(
            arrived=arrived * share,
            allocated=held * share,
            refused=(arrived - placed) * share,
            fragmented=fragmented,
        )

    note(0)
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
        decision = policy.place(request, snapshot)
        requests, arrived = requests + 1, arrived + amount
        placement = decision.placement
        chosen = None if placement is None else _assign_devices(request, snapshot, placement)
        if placement is not None and chosen is not None:
            node_id = placement.node_id
            snapshot = snapshot.apply([snapshot.node(node_id).with_kernel(request, chosen)])
            placed_requests, placed, held = placed_requests + 1, placed + amount, held + amount
            if arrival.duration_s is not None:
                end_s = arrival.at_s + arrival.duration_s
                heapq.heappush(ends, (end_s, requests, node_id, request, chosen))
        while len(points) <= arrived / capacity * 100.0 + EPSILON:
            note(len(points))
    if round(arrived / capacity * 100.0) == len(points):  # the demand may end a little before a whole percent
        note(len(points))
    return TraceRun(
        policy=policy.name,
        resource=resource,
        capacity=capacity,
        requests=requests,
        placed_requests=placed_requests,
        arrived=arrived,
        placed=placed,
        points=points,
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


def draw_poisson_arrivals(
    tasks: Sequence[Arrival], capacity: float, load: float, count: int, seed: int, resource: Resource = "gpus"
) -> list[Arrival]:
    """Return arrivals at random (Poisson) times, drawn with replacement from the tasks that have a duration.

    If none is refused, they hold ``load`` times the capacity on average. The arrivals at 0 s stand for kernels that run
    already; ``count`` arrivals follow. Raises ``ValueError`` if no task with a duration asks for the resource.
    """
    ending = [(task.request, task.duration_s) for task in tasks if task.duration_s]
    durations = [duration_s for _, duration_s in ending]
    work = sum(getattr(request, resource) * duration_s for request, duration_s in ending)
    if not work:
        raise ValueError(
            f"no task of the trace that ends asks for {RESOURCE_NAMES[resource]}, so no load can be drawn from it."
        )
    source = random.Random(seed)
    rate = load * capacity / (work / len(ending))
    arrivals, at_s = [], 0.0
    # at first a Poisson number of tasks, weighted by duration, at a random moment of their run
    running, passed = -1, 0.0
    while passed < rate * sum(durations) / len(ending):
        running, passed = running + 1, passed + source.expovariate(1.0)
    for request, duration_s in source.choices(ending, durations, k=running):
        arrivals.append(Arrival(request=request, duration_s=duration_s * source.random()))
    for _ in range(count):
        at_s += source.expovariate(rate)
        request, duration_s = ending[source.randrange(len(ending))]
        arrivals.append(Arrival(request=request, at_s=at_s, duration_s=duration_s))
    return arrivals


def assume_promised_use(node: Node) -> Node:
    """Return the node with fresh metrics that show no use beyond the promises."""
    devices = tuple(replace(device, used=0.0, memory_used_bytes=None) for device in node.devices)
    return replace(node, devices=devices, cpus_used=0.0, memory_used_bytes=0, metrics_age_s=0.0)


def measure_fragmentation(workload: Workload, snapshot: Snapshot) -> float:
    """Return the fragmentation of all nodes (FGD, ATC '23): the free GPUs that a typical request cannot use."""
    c = snapshot.columns
    if not c.device_model.shape[1]:
        return 0.0
    tables = workload.fragments(snapshot.models)
    k = tables.k(c.cpus_free)
    whole = np.minimum((c.device_milli == MILLI).sum(axis=1), tables.many.shape[2] - 1)
    per_device = tables.device[c.device_model, k[:, None], c.device_milli]
    several = tables.many[c.device_model[:, 0], k, whole]
    return float(per_device.sum() + several.sum()) / MILLI


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
