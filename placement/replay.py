"""What becomes of a stream of requests on a snapshot: each is placed or refused, and ends when its time is up.

Pure, as the policies are: benchmarks, `roost simulate` and an operator's what-if run the same code.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .decision import Decision, Placement
from .model import EPSILON, Node, Request
from .pipeline import Policy
from .snapshot import Snapshot
from .workload import MILLI, Workload

Resource = Literal["gpus", "cpus", "memory_bytes"]
"""What demand is counted in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request at a time, in seconds from any start. ``duration_s``: for how long it runs; None: it stays."""

    request: Request
    at_s: float = 0.0
    duration_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The state once that much was asked for. All in percent of what the cluster has.

    ``arrived`` and ``refused`` add up from the start, ``allocated`` is held now, with what was promised before.
    ``fragmented`` is FGD's expected fragmentation: free GPUs that a typical request cannot use; None: not worked out.
    """

    arrived: float
    allocated: float
    refused: float
    fragmented: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a policy did. Amounts are in the resource's own unit; ``points`` has one for each whole percent arrived.
    ``last`` is the cluster after the last arrival."""

    policy: str
    resource: Resource
    capacity: float
    requests: int
    placed_requests: int
    arrived: float
    placed: float
    points: dict[int, Point]
    last: Snapshot

    @property
    def refused_requests(self) -> int:
        return self.requests - self.placed_requests

    @property
    def refused(self) -> float:
        return self.arrived - self.placed

    def allocation(self, percent: int) -> float | None:
        """Percent of the cluster that was allocated once ``percent`` of it had arrived; None: as much never did."""
        point = self.points.get(percent)
        return None if point is None else point.allocated


def replay(
    policy: Policy,
    snapshot: Snapshot,
    arrivals: Iterable[Arrival],
    *,
    resource: Resource = "gpus",
    workload: Workload | None = None,
    fragmentation_every: int = 5,
    on_decision: Callable[[Arrival, Decision], None] | None = None,
) -> Replay:
    """Places each arrival, in that order, on what the ones before have left; nothing is tried again.

    A placement that its node cannot hold counts as refused, as its lease would be. With a ``workload``, fragmentation
    is worked out every ``fragmentation_every`` percent, a pass over all nodes. ``on_decision`` is called after each.
    Raises ``ValueError`` when the cluster has none of the resource, or the policy misbehaves.
    """
    capacity = float(getattr(snapshot.columns, resource).sum())
    if not capacity:
        raise ValueError(f"the cluster has no {_WORDS[resource]}, so that nothing can be counted in them.")
    held = capacity - float(np.maximum(getattr(snapshot.columns, _FREE[resource]), 0).sum())
    requests = placed_requests = 0
    arrived = placed = 0.0
    points: dict[int, Point] = {}
    ends: list[tuple[float, int, str, Request, tuple[str, ...]]] = []

    def note(percent: int) -> None:
        share = 100.0 / capacity
        fragmented = None
        if workload is not None and resource == "gpus" and percent % fragmentation_every == 0:
            fragmented = measure_fragmentation(workload, snapshot) * share
        points[percent] = Point(
            arrived=arrived * share,
            allocated=held * share,
            refused=(arrived - placed) * share,
            fragmented=fragmented,
        )

    note(0)
    for arrival in arrivals:
        over = []
        while ends and ends[0][0] <= arrival.at_s:
            over.append(heapq.heappop(ends))
        if over:
            snapshot = _released(snapshot, over)
            held -= sum(getattr(request, resource) for _, _, _, request, _ in over)
        request, amount = arrival.request, float(getattr(arrival.request, resource))
        decision = policy.place(request, snapshot)
        requests, arrived = requests + 1, arrived + amount
        devices = None if decision.placement is None else _devices(request, snapshot, decision.placement)
        if decision.placement is not None and devices is not None:
            node_id = decision.placement.node_id
            snapshot = snapshot.apply([snapshot.node(node_id).with_kernel(request, devices)])
            placed_requests, placed, held = placed_requests + 1, placed + amount, held + amount
            if arrival.duration_s is not None:
                end_s = arrival.at_s + arrival.duration_s
                heapq.heappush(ends, (end_s, requests, node_id, request, devices))
        while len(points) <= arrived / capacity * 100.0 + EPSILON:
            note(len(points))
        if on_decision is not None:
            on_decision(arrival, decision)
    if round(arrived / capacity * 100.0) == len(points):  # demand for 130 % may end a little before
        note(len(points))
    return Replay(
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
    """The protocol of FGD (Weng et al., ATC '23): these requests in random order, until ``ratio`` x capacity is asked
    for.

    Where they ask for more, some are left out at random; where for less, more are drawn from them, with replacement.
    None ends. Raises ``ValueError`` when none of them asks for any of the resource.
    """
    if not any(getattr(request, resource) for request in requests):
        raise ValueError(
            f"the trace asks for no {_WORDS[resource]}, so that no demand for them can be made of it."
        )
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
    tasks: Sequence[Arrival],
    capacity: float,
    load: float,
    count: int,
    seed: int,
    *,
    resource: Resource = "gpus",
    is_steady: bool = False,
) -> list[Arrival]:
    """``count`` arrivals drawn from these, with replacement, each running as long as it did; Poisson in time.

    Their rate is such that, were none refused, ``load`` x capacity would be held in the long run. That may take as
    long as the longest task; with ``is_steady`` those come first, at 0 s, that would be running by then, each with
    what it would have left. Tasks without a duration are left out. Raises ``ValueError`` when nothing is left that
    asks for any of the resource.
    """
    ending = [(task.request, task.duration_s) for task in tasks if task.duration_s]
    durations = [duration_s for _, duration_s in ending]
    work = sum(getattr(request, resource) * duration_s for request, duration_s in ending)
    if not work:
        raise ValueError(
            f"no task of the trace that ends asks for {_WORDS[resource]}, so that there is no load to make of it."
        )
    source = random.Random(seed)
    rate = load * capacity / (work / len(ending))
    arrivals, at_s = [], 0.0
    if is_steady:  # Poisson in number; by length, as one meets them; at any moment of their run
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
    """The node as simulations see it: fresh metrics say that nobody uses more than was promised."""
    devices = tuple(replace(device, used=0.0, memory_used_bytes=None) for device in node.devices)
    return replace(node, devices=devices, cpus_used=0.0, memory_used_bytes=0, metrics_age_s=0.0)


def measure_fragmentation(workload: Workload, snapshot: Snapshot) -> float:
    """FGD's expected fragmentation F of all nodes, in GPUs: what of the free GPUs a typical request could not use."""
    c = snapshot.columns
    if not c.device_model.shape[1]:
        return 0.0
    tables = workload.fragments(snapshot.models)
    k = tables.k(c.cpus_free)
    whole = np.minimum((c.device_milli == MILLI).sum(axis=1), tables.many.shape[2] - 1)
    per_device = tables.device[c.device_model, k[:, None], c.device_milli]
    several = tables.many[c.device_model[:, 0], k, whole]
    return float(per_device.sum() + several.sum()) / MILLI


_FREE = {"gpus": "gpus_free", "cpus": "cpus_free", "memory_bytes": "memory_free_bytes"}
_WORDS = {"gpus": "GPUs", "cpus": "CPUs", "memory_bytes": "memory"}


def _devices(request: Request, snapshot: Snapshot, placement: Placement) -> tuple[str, ...] | None:
    """The devices it gets: those of the placement, else the first that fit. None: the node cannot hold it."""
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


def _released(
    snapshot: Snapshot, over: Sequence[tuple[float, int, str, Request, tuple[str, ...]]]
) -> Snapshot:
    nodes: dict[str, Node] = {}
    for _, _, node_id, request, devices in over:
        node = nodes.get(node_id) or snapshot.node(node_id)
        nodes[node_id] = node.without_kernel(request, devices)
    return snapshot.apply(nodes.values())
