"""Runs a stream of requests under several policies, with their times."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from roost.placement import NOWHERE, Decision, Node, Policy, Request, Snapshot, Workload
from roost.placement.shipped_policies import SHIPPED, build_policy, get_policy
from roost.placement.trace_run import Arrival, Resource, run_trace
from roost.scheduler.errors import ConfigError
from roost.scheduler.policies.decision_check import check_placement
from roost.scheduler.policies.loader import find_policy, format_error, load_policy

from .report import PolicyRun

_PROGRESS_EVERY = 200


def compare(
    policies: Sequence[str],
    named: Mapping[str, str],
    nodes: Sequence[Node],
    tasks: Sequence[Arrival],
    streams: Mapping[int, Sequence[Arrival]],
    resource: Resource,
) -> dict[str, list[PolicyRun]]:
    """Run each stream under each policy, and return the runs by policy. A `ConfigError` names a failed policy.

    `named` has the operator's policies by name. `streams` has the streams by seed.
    """
    workload = Workload.of([task.request for task in tasks], Snapshot.of(nodes))
    # errors describe failures; no stack on stderr
    logging.getLogger("roost").addHandler(logging.NullHandler())
    known = {name: load_policy(name, partial(find_policy, name, named)) for name in policies}

    def make(name: str) -> Policy:
        return load_policy(name, lambda: build_policy(known[name], name, workload))

    for name in known:
        make(name)  # a broken policy fails here, before the first run
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    runs: dict[str, list[PolicyRun]] = {name: [] for name in policies}
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("", total=len(runs) * sum(map(len, streams.values())))
        advance = partial(progress.advance, bar, _PROGRESS_EVERY)
        for name in runs:
            for seed, stream in streams.items():
                progress.update(bar, description=f"{name}, seed {seed}")
                is_foreign = known[name] is not SHIPPED.get(name)
                timed = TimedPolicy(make(name), name, advance, is_checked=is_foreign)
                done = run_trace(timed, Snapshot.of(nodes), stream, resource=resource, workload=workload)
                runs[name].append(PolicyRun(seed=seed, result=done, decision_ms=timed.decision_ms()))
    return runs


def count_impossible(nodes: Sequence[Node], tasks: Sequence[Arrival]) -> int:
    """Return how many of the requests would fit no node, even if all nodes were empty."""
    policy, snapshot = get_policy("pack"), Snapshot.of(nodes)
    requests = Counter(task.request for task in tasks)
    return sum(count for request, count in requests.items() if policy.place(request, snapshot).is_never)


@dataclass
class TimedPolicy:
    """A policy that measures how long another policy takes for each decision. An exception becomes a `ConfigError`.

    With `is_checked`, an impossible decision becomes a `ConfigError` too.
    """

    policy: Policy
    name: str
    on_progress: Callable[[], object]
    is_checked: bool
    times_s: list[float] = field(default_factory=list)

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        began = time.perf_counter()
        try:
            decision = self.policy.place(request, snapshot, avoid=avoid)
            self.times_s.append(time.perf_counter() - began)
            if self.is_checked:
                check_placement(decision, request, snapshot, avoid)
                if decision.placement is None and not decision.is_explained:
                    raise ValueError("it gave neither a node nor a refusal")
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - a policy is foreign code and may even raise SystemExit
            raise ConfigError(f"policy {self.name} failed ({format_error(problem)}).") from None
        if len(self.times_s) % _PROGRESS_EVERY == 0:
            self.on_progress()
        return decision

    def decision_ms(self) -> tuple[float, float]:
        """Return the median and the 99th percentile of the decision times in milliseconds."""
        p50, p99 = np.percentile(self.times_s, [50, 99]) * 1e3 if self.times_s else (0.0, 0.0)
        return float(p50), float(p99)
