"""The time of one placement decision, on clusters of 1,213, 10,000 and 100,000 nodes in one process.

Stages, by size:
  decision p50, p99   time of Policy.place() under `balanced`, for requests drawn from the trace on a busy cluster;
                      before each decision one kernel starts and one ends, so that cached scores must be updated
  commit p50          time of Snapshot.apply() for the changed nodes; it is no part of the decision
  never seen          time of place() for a new class of requests, which scores all nodes
  snapshot            memory of the whole snapshot: nodes, devices, columns

The cluster is that of the trace. `balanced` fills it to --fill of its GPUs. The nodes are then copied as often as
needed. Claims: p50 ≤ 100 µs and p99 ≤ 1 ms at each size, p50 at 100,000 nodes ≤ 2 × p50 at 1,213 nodes,
never seen ≤ 150 ms, snapshot ≤ 200 MiB.
"""

from __future__ import annotations

import gc
import random
import sys
import time
import tracemalloc
from argparse import Namespace
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import track
from trace_data import add_traces, find_folder, read_cluster, read_tasks

from roost.bench.report import Report, parser
from roost.placement import Node, Policy, Request, Snapshot, Workload, get_policy
from roost.placement.pipeline import class_key
from roost.placement.replay import draw_arrivals_to_demand, replay

SIZES = (1_213, 10_000, 100_000)
KERNELS = 200
"""At most this many of the kernels started in the measurement run at a time. Then the oldest ends first."""
MIB = 1 << 20


def fill_nodes(nodes: Sequence[Node], requests: Sequence[Request], fill: float) -> list[Node]:
    """Return the nodes after `balanced` has placed requests up to that share of the GPUs."""
    snapshot = Snapshot.of(nodes)
    arrivals = draw_arrivals_to_demand(requests, float(snapshot.columns.gpus.sum()), fill, seed=1)
    last = replay(get_policy("balanced", Workload.of(requests, snapshot)), snapshot, arrivals).last
    return [last.node(node_id) for node_id in last.nodes]


def copy_nodes(nodes: Sequence[Node], size: int) -> list[Node]:
    """Return this many nodes, copied in turn, each with an id of its own."""
    chosen = (nodes[number % len(nodes)] for number in range(size))
    return [replace(node, id=f"{number // len(nodes):03d}-{node.id}") for number, node in enumerate(chosen)]


class ChangingCluster:
    """A snapshot of one size that keeps changing, and the policy under test."""

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

    def never_seen(self, number: int) -> float:
        """Return the seconds for a request of a new class."""
        request = replace(
            self.source.choice(self.requests), cpus=1.0 + number / 1024, gpus=0.25, gpu_models=()
        )
        started = time.perf_counter()
        self.policy.place(request, self.snapshot)
        return time.perf_counter() - started


def memory_bytes(nodes: Sequence[Node], size: int) -> int:
    """Return the memory of a snapshot of copies of these nodes, nodes included."""
    gc.collect()
    tracemalloc.start()
    snapshot = Snapshot.of(copy_nodes(nodes, size))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(snapshot) == size
    return used


def measure(arguments: Namespace) -> Report:
    """Run all rounds and return the report with its claims."""
    folder = find_folder(arguments)
    requests = [task.request for task in read_tasks(folder, arguments.workload)]
    rounds = arguments.rounds or (2 if arguments.quick else 7)
    decisions = 300 if arguments.quick else 2_000
    sizes = SIZES[:2] if arguments.quick else SIZES
    report = Report(
        "decision", workload=arguments.workload, fill=arguments.fill, rounds=rounds, decisions=decisions
    )
    busy = fill_nodes(read_cluster(folder), requests, arguments.fill)
    report.add(f"snapshot/{sizes[-1]}", memory_bytes(busy, sizes[-1]) / MIB, "MiB")
    workload = Workload.of(requests, Snapshot.of(busy))
    clusters = {
        size: ChangingCluster(copy_nodes(busy, size), requests, get_policy("balanced", workload))
        for size in sizes
    }
    for cluster in clusters.values():
        cluster.warm_up()
    for number in track(range(-1, rounds), description=report.name, console=Console(stderr=True)):
        for size, cluster in clusters.items():
            times_us = np.array([cluster.decide() for _ in range(decisions)]) * 1e6
            never_ms = cluster.never_seen(number) * 1e3
            if number >= 0:  # the first is the warm-up
                for percent in (50, 99):
                    report.add(
                        f"decision p{percent}/{size}", float(np.percentile(times_us[:, 0], percent)), "µs"
                    )
                report.add(f"commit p50/{size}", float(np.median(times_us[:, 1])), "µs")
                report.add(f"never seen/{size}", never_ms, "ms")
    for size in sizes:
        report.claim(
            f"decision p50 at {size} nodes, µs", report.figure(f"decision p50/{size}").median, at_most=100
        )
        report.claim(
            f"decision p99 at {size} nodes, µs", report.figure(f"decision p99/{size}").median, at_most=1000
        )
    report.ratio("decision p50: largest ÷ smallest", f"decision p50/{sizes[-1]}", f"decision p50/{sizes[0]}")
    ratio = report.ratios["decision p50: largest ÷ smallest"].of_medians
    report.claim(f"decision p50, {sizes[-1]} ÷ {sizes[0]} nodes", ratio, at_most=2)
    report.claim(
        f"never seen at {sizes[-1]} nodes, ms", report.figure(f"never seen/{sizes[-1]}").median, at_most=150
    )
    report.claim(
        f"snapshot of {sizes[-1]} nodes, MiB", report.figure(f"snapshot/{sizes[-1]}").median, at_most=200
    )
    return report


def main() -> int:
    options = parser(__doc__)
    add_traces(options)
    options.add_argument("--workload", default="default", help="workload of the trace (default: default)")
    options.add_argument(
        "--fill", type=float, default=0.85, help="share of the GPUs that is taken (default 0.85)"
    )
    options.add_argument("--rounds", type=int, help="repetitions of each size (default 7, quick 2)")
    arguments = options.parse_args()
    return measure(arguments).finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
