"""`roost bench placement` without a trace: how long a decision takes on busy clusters of some sizes, by policy.

decision p50, p99   the time of `Policy.place`. Before each decision one kernel starts and one ends, so that cached
                    scores must be updated
commit p50          the time of `Snapshot.apply` for the changed nodes, which is no part of the decision
never seen          the time of `place` for a new class of requests, which scores all nodes

The nodes are drawn at random and filled by the policy itself. The benchmark needs no cluster and no service.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from roost.placement import Device, Node, Policy, Request, Snapshot, Workload
from roost.placement.pipeline import class_key
from roost.placement.shipped_policies import balanced
from roost.scheduler.errors import ConfigError

from .policies import FoundPolicy
from .report import Report, take_turns
from .trace_run import draw_arrivals_to_demand, empty_node, run_trace

KERNELS = 200
"""At most this many kernels of the measurement run at a time. With one more, the oldest kernel ends."""
_DRAWN = 1_000
"""This many nodes are drawn and filled. A larger cluster has copies of them."""
_GIB = 1 << 30
_MACHINES = ((32, 256, 0, ""), (64, 512, 4, "T4"), (96, 768, 8, "A100"), (128, 1024, 8, "H100"))
_MACHINE_WEIGHTS = (4, 3, 2, 1)
"""The number of nodes in ten of each kind. `_MACHINES` has their CPUs, GiB, GPUs and GPU model."""
_WISHES = (
    (1, 4, 0.0),
    (2, 8, 0.0),
    (4, 16, 0.25),
    (4, 32, 0.5),
    (8, 64, 1.0),
    (16, 128, 2.0),
    (32, 256, 8.0),
)
_WISH_WEIGHTS = (20, 20, 15, 15, 20, 8, 2)
"""The number of kernels in a hundred with each request. `_WISHES` has their CPUs, GiB and GPUs."""
_DRAWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The measurements to make. `fill` is the share of the GPUs that is requested before the first measurement."""

    policies: Sequence[str]
    sizes: Sequence[int]
    rounds: int
    decisions: int = 2_000
    fill: float = 0.85
    seed: int = 1


class BusyCluster:
    """A snapshot that keeps changing, and the policy under test."""

    def __init__(self, nodes: Sequence[Node], requests: Sequence[Request], chosen: Policy) -> None:
        self.snapshot = Snapshot.of(nodes)
        self.policy = chosen
        self.requests = requests
        self.source = random.Random(1)
        self.running: deque[tuple[str, Request, tuple[str, ...]]] = deque()

    def warm_up(self) -> None:
        """Decide once for every class of requests."""
        for request in {class_key(request): request for request in self.requests}.values():
            self.policy.place(request, self.snapshot)

    def measure(self, report: Report, name: str, decisions: int, number: int) -> None:
        """Time `decisions` decisions, and one for a new class of requests. Add the times to the report.

        `number` makes the class new. If `number` is negative, the times are dropped.
        """
        times_us = np.array([self.decide() for _ in range(decisions)]) * 1e6
        never_ms = self.decide_for_a_new_class(number) * 1e3
        if number >= 0:
            for percent in (50, 99):
                of_round = float(np.percentile(times_us[:, 0], percent))
                report.add(f"decision p{percent}/{name}", of_round, "µs")
            report.add(f"commit p50/{name}", float(np.median(times_us[:, 1])), "µs")
            report.add(f"never seen/{name}", never_ms, "ms")

    def decide(self) -> tuple[float, float]:
        """Decide once, and return the seconds for the decision and for applying its changes."""
        request = self.source.choice(self.requests)
        started = time.perf_counter()
        placement = self.policy.place(request, self.snapshot).placement
        decided_s = time.perf_counter() - started
        changed: dict[str, Node] = {}
        if placement is not None:
            changed[placement.node_id] = self.snapshot.node(placement.node_id).with_kernel(
                request, placement.device_ids
            )
            self.running.append((placement.node_id, request, placement.device_ids))
        if len(self.running) > KERNELS:
            node_id, ended, device_ids = self.running.popleft()
            node = changed.get(node_id) or self.snapshot.node(node_id)
            changed[node_id] = node.without_kernel(ended, device_ids)
        started = time.perf_counter()
        self.snapshot = self.snapshot.apply(changed.values())
        return decided_s, time.perf_counter() - started

    def decide_for_a_new_class(self, number: int) -> float:
        """Return the seconds of a decision for a request of a new class. A new `number` makes a new class."""
        request = replace(
            self.source.choice(self.requests), cpus=1.0 + number / 1024, gpus=0.25, gpu_models=()
        )
        started = time.perf_counter()
        self.policy.place(request, self.snapshot)
        return time.perf_counter() - started


def check(plan: Plan) -> None:
    """Raise `ConfigError` if a cluster is too large."""
    if max(plan.sizes) > 1_000_000:
        raise ConfigError(
            "--nodes can be at most 1000000: a larger cluster needs more memory than most machines have."
        )


async def measure(report: Report, plan: Plan, policies: Sequence[FoundPolicy]) -> None:
    """Measure each policy on each size of the cluster. All pairs of policy and size take turns."""
    nodes = draw_nodes(min(_DRAWN, max(plan.sizes)), plan.seed)
    requests = draw_requests(plan.seed)
    clusters = {}
    for policy in policies:
        busy = fill_nodes(nodes, requests, plan.fill, policy.build)
        workload = Workload.of(requests, Snapshot.of(busy))
        for size in plan.sizes:
            cluster = BusyCluster(copy_nodes(busy, size), requests, policy.build(workload))
            cluster.warm_up()
            clusters[f"{policy.name} on {size} nodes"] = cluster
    for count, (name, is_warm) in enumerate(take_turns("placement", list(clusters), rounds=plan.rounds)):
        number = count // len(clusters) - 1 if is_warm else -1
        clusters[name].measure(report, name, plan.decisions, number)
        await asyncio.sleep(0)  # an interrupt ends it here


def draw_nodes(count: int, seed: int) -> list[Node]:
    """Return empty nodes of several sizes."""
    kinds = random.Random(seed).choices(_MACHINES, _MACHINE_WEIGHTS, k=count)
    return [
        empty_node(
            Node(
                id=f"node-{number:05}",
                cpus=cpus,
                memory_bytes=gib * _GIB,
                devices=tuple(Device(id=str(each), model=model) for each in range(gpus)),
            )
        )
        for number, (cpus, gib, gpus, model) in enumerate(kinds)
    ]


def draw_requests(seed: int) -> list[Request]:
    """Return requests of kernels, drawn at random."""
    wishes = random.Random(seed).choices(_WISHES, _WISH_WEIGHTS, k=_DRAWS)
    return [Request(cpus=cpus, memory_bytes=gib * _GIB, gpus=gpus) for cpus, gib, gpus in wishes]


def fill_nodes(
    nodes: Sequence[Node],
    requests: Sequence[Request],
    fill: float,
    build: Callable[[Workload], Policy] = balanced,
) -> list[Node]:
    """Return the nodes after a policy has placed requests for the share `fill` of all GPUs."""
    snapshot = Snapshot.of(nodes)
    arrivals = draw_arrivals_to_demand(requests, float(snapshot.columns.gpus.sum()), fill, seed=1)
    last = run_trace(build(Workload.of(requests, snapshot)), snapshot, arrivals).last
    return [last.node(node_id) for node_id in last.nodes]


def copy_nodes(nodes: Sequence[Node], size: int) -> list[Node]:
    """Return this many nodes, copied in turn, each with an id of its own."""
    chosen = (nodes[number % len(nodes)] for number in range(size))
    return [replace(node, id=f"{number // len(nodes):03d}-{node.id}") for number, node in enumerate(chosen)]
