"""The time of one placement decision, on clusters of 1,213, 10,000 and 100,000 nodes in one process.

The stages are those of `roost bench placement`. `snapshot` is the memory of all nodes, devices and columns.

The cluster is that of the GPU trace (`trace_data.py`). The policy `balanced` places requests until the share --fill of
its GPUs is taken. The nodes are then copied to the other sizes. Claims: p50 ≤ 125 µs and p99 ≤ 1 ms at each size, p50
at 100,000 nodes ≤ 2 × p50 at 1,213 nodes, never seen ≤ 150 ms, snapshot ≤ 200 MiB.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from argparse import Namespace
from collections.abc import Sequence

from claims import Report, parser
from page_tables import PageTable
from rich.console import Console
from rich.progress import track
from trace_data import add_traces, find_folder, read_cluster, read_tasks

from roost.bench.placement import BusyCluster, copy_nodes, fill_nodes
from roost.placement import Node, Snapshot, Workload, get_policy

SIZES = (1_213, 10_000, 100_000)
MIB = 1 << 20
TABLE = PageTable(
    name="decision",
    columns={f"{size:,} nodes": f"{{}}/{size}" for size in SIZES},
    rows={
        "decision, p50": "decision p50",
        "decision, p99": "decision p99",
        "a class of requests that is new": "never seen",
        "recording the placement, p50": "commit p50",
        "memory of a snapshot with its GPUs": "snapshot",
    },
    packages=("numpy",),
)


def memory_bytes(nodes: Sequence[Node], size: int) -> int:
    """Return the memory of a snapshot of `size` nodes, copied from these. The copied nodes are included."""
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
        size: BusyCluster(copy_nodes(busy, size), requests, get_policy("balanced", workload))
        for size in sizes
    }
    for cluster in clusters.values():
        cluster.warm_up()
    for number in track(range(-1, rounds), description=report.name, console=Console(stderr=True)):
        for size, cluster in clusters.items():
            cluster.measure(report, str(size), decisions, number)
    for size in sizes:
        report.claim(f"decision p50/{size}", at_most=125)
        report.claim(f"decision p99/{size}", at_most=1000)
    report.ratio("decision p50: largest ÷ smallest", f"decision p50/{sizes[-1]}", f"decision p50/{sizes[0]}")
    report.claim("decision p50: largest ÷ smallest", at_most=2)
    report.claim(f"never seen/{sizes[-1]}", at_most=150)
    report.claim(f"snapshot/{sizes[-1]}", at_most=200)
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
