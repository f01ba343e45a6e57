"""The folder of the GPU trace on which placement is measured, the functions that read it, and arrivals that end."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from claims import SKIPPED

from roost.bench.trace_files import read_nodes, read_trace
from roost.bench.trace_run import RESOURCE_NAMES, Arrival, Resource, empty_node
from roost.placement import Node

NODES = "openb_node_list_gpu_node.csv"
TASKS = "openb_pod_list_{}.csv"
PUBLISHED = "published_allocation.csv"
WHERE = (
    "the trace is missing: download the folder data/csv of github.com/hkust-adsl/kubernetes-scheduler-simulator "
    "(Apache-2.0; Weng et al., ATC '23) and give its path with --traces or ROOST_TRACES"
)


def add_traces(options: argparse.ArgumentParser) -> None:
    """Add the option --traces. Its default is ROOST_TRACES, else the folder `traces` or `../shared/traces`."""
    found = [path for path in map(Path, ("traces", "../shared/traces")) if (path / NODES).is_file()]
    default = os.environ.get("ROOST_TRACES") or (found[0] if found else None)
    options.add_argument("--traces", type=Path, metavar="FOLDER", default=default, help="folder of the CSVs")


def find_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the trace. If it is missing, print where to get it and exit."""
    if arguments.traces is None or not (Path(arguments.traces) / NODES).is_file():
        print(WHERE, file=sys.stderr)
        raise SystemExit(SKIPPED)
    return Path(arguments.traces)


def read_cluster(folder: Path) -> list[Node]:
    """Return the empty nodes of the trace, with metrics that show no use beyond the promises."""
    return [empty_node(node) for node in read_nodes(str(folder / NODES))]


def read_tasks(folder: Path, workload: str) -> list[Arrival]:
    """Return the tasks of one workload, such as `default`."""
    return read_trace(str(folder / TASKS.format(workload)))


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
