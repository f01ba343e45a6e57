"""How often a start finds a warm process: the tasks of a real GPU cluster, as starts of kernels in the trace's order.

Equal requests count as one person's kernelspec. A process that was made for a kernelspec serves its starts for ten
minutes after its last use. Counted are the starts that come within ten minutes after the last one of their kernelspec:
before the others, nobody could have made a process.

Stages:
  0 places        share of these starts on a node where an earlier kernel has left a process
  K places        the same if processes also wait where the policy puts the next kernel, and on its runners-up

Claim: one place gives at least 90 % of the hits that eight places give.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from page_tables import PageTable
from rich.console import Console
from rich.progress import track
from trace_data import add_traces, find_folder, read_cluster, read_tasks

from roost.bench.report import Report, parser
from roost.placement import NOWHERE, Decision, Pipeline, Policy, Request, Snapshot, Workload, get_policy
from roost.placement.shipped_policies import RandomTies
from roost.placement.trace_run import Arrival, run_trace

KEPT_S = 600.0
PLACES = (0, 1, 2, 4, 8)
FIRST_SEED = 42
WORKLOADS = ("default", "gpushare40", "gpuspec33")
SHARE = 0.9
HITS = PageTable(
    name="readiness",
    columns={f"{count} {'place' if count == 1 else 'places'}": f"{count} places/{{}}" for count in PLACES},
    rows={name: name for name in WORKLOADS},
    corner="starts on a node with a warm process",
    packages=("numpy",),
)


class Watched:
    """A policy whose decisions are watched. It counts the starts that find a process, by the number of places."""

    def __init__(self, policy: Policy, arrivals: Sequence[Arrival]) -> None:
        self.name = policy.name
        self.counted = 0
        self.hits = dict.fromkeys(PLACES, 0)
        self._policy, self._arrivals = policy, iter(arrivals)
        self._last: dict[Request, float] = {}
        self._used: dict[int, dict[tuple[Request, str], float]] = {count: {} for count in PLACES}
        """When a process was used last, by the kernelspec and its node, for each number of places."""

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        now = next(self._arrivals).at_s
        decision = self._policy.place(request, snapshot, avoid=avoid)
        if decision.placement is None:
            return decision
        placed = decision.placement
        if now - self._last.get(request, -KEPT_S - 1) <= KEPT_S:
            self.counted += 1
            for count, used in self._used.items():
                self.hits[count] += now - used.get((request, placed.node_id), -KEPT_S - 1) <= KEPT_S
        self._last[request] = now
        node = snapshot.node(placed.node_id).with_kernel(request, placed.device_ids)
        later = self._policy.place(request, snapshot.apply([node]))
        ranked = [later.placement, *later.runners_up] if later.placement is not None else []
        for count, used in self._used.items():
            for place in (placed, *ranked[:count]):
                assert place is not None
                used[request, place.node_id] = now
        return decision


def measure_workload(folder: Path, workload: str, seed: int) -> Watched:
    """Replay a workload once. The seed breaks the policy's ties."""
    snapshot = Snapshot.of(read_cluster(folder))
    tasks = sorted(read_tasks(folder, workload), key=lambda task: task.at_s)
    policy = get_policy("balanced", Workload.of([task.request for task in tasks], snapshot))
    assert isinstance(policy, Pipeline)
    watched = Watched(replace(policy, ties=RandomTies(seed)), tasks)
    run_trace(watched, snapshot, tasks)
    return watched


def measure(arguments: Namespace) -> Report:
    folder = find_folder(arguments)
    workloads = WORKLOADS[:1] if arguments.quick else WORKLOADS
    seeds = range(FIRST_SEED, FIRST_SEED + (1 if arguments.quick else 3))
    report = Report("readiness", kept_s=KEPT_S, first_seed=FIRST_SEED)
    todo = [(name, seed) for seed in seeds for name in workloads]
    for name, seed in track(todo, description=report.name, console=Console(stderr=True)):
        watched = measure_workload(folder, name, seed)
        report.add(f"counted starts/{name}", watched.counted, "starts")
        for count, hits in watched.hits.items():
            report.add(f"{count} places/{name}", 100 * hits / watched.counted, "%")
    for name in workloads:
        one, most = (report.figure(f"{count} places/{name}").median for count in (1, PLACES[-1]))
        report.claim(f"{name}: hits of 1 ÷ hits of {PLACES[-1]} places", one / most, at_least=SHARE)
    return report


def main() -> int:
    options = parser(__doc__)
    add_traces(options)
    arguments = options.parse_args()
    return measure(arguments).finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
