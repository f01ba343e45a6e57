"""The folder of the GPU trace on which placement is measured, and the functions that read it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from roost.bench.report import SKIPPED
from roost.placement import Node
from roost.placement.trace_run import Arrival, assume_promised_use
from roost.scheduler.simulate.trace_files import read_nodes, read_trace

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
    return [assume_promised_use(node) for node in read_nodes(str(folder / NODES))]


def read_tasks(folder: Path, workload: str) -> list[Arrival]:
    """Return the tasks of one workload, such as `default`."""
    return read_trace(str(folder / TASKS.format(workload)))
