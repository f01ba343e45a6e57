"""Where the GPU trace lies that placement is measured on, and how it is read."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from roost.placement import Node
from roost.placement.replay import Arrival, assume_promised_use
from roost.scheduler.simulate.trace_files import read_nodes, read_trace

NODES = "openb_node_list_gpu_node.csv"
TASKS = "openb_pod_list_{}.csv"
PUBLISHED = "published_allocation.csv"
WHERE = (
    "the trace is not here: get the folder data/csv of github.com/hkust-adsl/kubernetes-scheduler-simulator "
    "(Apache-2.0; Weng et al., ATC '23) and name it with --traces or ROOST_TRACES"
)


def add_traces(options: argparse.ArgumentParser) -> None:
    """The option --traces; its default is ROOST_TRACES, else a folder `traces` here or in `shared` beside."""
    found = [path for path in map(Path, ("traces", "../shared/traces")) if (path / NODES).is_file()]
    default = os.environ.get("ROOST_TRACES") or (found[0] if found else None)
    options.add_argument("--traces", type=Path, metavar="FOLDER", default=default, help="folder of the CSVs")


def folder_of(arguments: argparse.Namespace) -> Path:
    """The folder, or an exit with one sentence that says where to get it."""
    if arguments.traces is None or not (Path(arguments.traces) / NODES).is_file():
        print(WHERE, file=sys.stderr)
        raise SystemExit(77)  # as test suites say that something was left out
    return Path(arguments.traces)


def read_cluster(folder: Path) -> list[Node]:
    """The trace's nodes, empty, with metrics that say that nobody uses more than was promised."""
    return [assume_promised_use(node) for node in read_nodes(str(folder / NODES))]


def read_tasks(folder: Path, workload: str) -> list[Arrival]:
    """The tasks of one workload, as `default`."""
    return read_trace(str(folder / TASKS.format(workload)))
