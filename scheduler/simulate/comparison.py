"""Compares policies: runs streams of requests under each, and shows the progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from roost.placement import Node, Snapshot, Workload
from roost.placement.shipped_policies import SHIPPED, get_policy
from roost.placement.trace_run import Arrival, Resource

from .foreign_runs import ForeignRuns
from .policy_runs import PROGRESS_EVERY, PolicyRuns, Streams
from .report import PolicyRun


def compare(
    policies: Sequence[str],
    named: Mapping[str, str],
    nodes: Sequence[Node],
    tasks: Sequence[Arrival],
    streams: Mapping[int, Sequence[Arrival]],
    resource: Resource,
) -> dict[str, list[PolicyRun]]:
    """Run each stream under each policy, and return the runs by policy. A `ConfigError` names a failed policy.

    `named` has the operator's policies by name. `streams` has the streams by seed. A policy that roost does not ship
    runs in a process of its own.
    """
    workload = Workload.of([task.request for task in tasks], Snapshot.of(nodes))
    given = Streams(nodes=nodes, streams=streams, resource=resource, workload=workload)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    runs: dict[str, list[PolicyRun]] = {name: [] for name in policies}
    screen = Console(stderr=True)
    with ExitStack() as stack:
        known: dict[str, PolicyRuns | ForeignRuns] = {}
        for name in runs:  # a broken policy fails here, before the first run
            if named.get(name, name) in SHIPPED:
                known[name] = PolicyRuns(name, named, given)
            else:
                known[name] = stack.enter_context(ForeignRuns(name, named, given))
        progress = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
        stack.enter_context(progress)
        bar = progress.add_task("", total=len(runs) * sum(map(len, streams.values())))
        advance = partial(progress.advance, bar, PROGRESS_EVERY)
        for name, found in known.items():
            for seed in streams:
                progress.update(bar, description=f"{name}, seed {seed}")
                runs[name].append(found.run(seed, advance))
    return runs


def count_impossible(nodes: Sequence[Node], tasks: Sequence[Arrival]) -> int:
    """Return how many of the requests would fit no node, even if all nodes were empty."""
    policy, snapshot = get_policy("pack"), Snapshot.of(nodes)
    requests = Counter(task.request for task in tasks)
    return sum(count for request, count in requests.items() if policy.place(request, snapshot).is_never)
