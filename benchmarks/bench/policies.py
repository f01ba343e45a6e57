"""Policies side by side in `roost bench placement`: each places the requests of a trace on each cluster.

allocated at 100 %   what was promised when the requests had reached what the cluster has
allocated at the end what was promised when the last request had arrived
refused              the refused share of what was asked for. A refused request is not tried again
decision p50, p99    the time of `Policy.place`

The first three are in percent, of GPUs if trace and cluster have any, else of CPUs or memory. A round draws requests at
random until they ask for 130 % (the protocol of FGD, ATC '23), and ends none. The requests in a service's log arrive
and end as recorded, in one round.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from roost.placement import NOWHERE, Decision, Node, Policy, Request, Snapshot, Workload, get_policy
from roost.placement.model.format import format_count
from roost.placement.shipped_policies import build_policy
from roost.scheduler.errors import ConfigError
from roost.scheduler.policies.loader import find_policy, format_error, load_policy

from .report import Report, take_turns
from .trace_run import RESOURCE_NAMES, Arrival, Resource, TraceRun, draw_arrivals_to_demand, run_trace

_DEMAND, _FIRST_SEED = 1.3, 42


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPolicy:
    """A policy by its name, as `find_policy` returned it."""

    name: str
    found: object

    @classmethod
    def find(cls, name: str, named: Mapping[str, str]) -> FoundPolicy:
        """Return the policy of this name, of a file or of a module. `named` has the operator's. Raise `ConfigError`."""
        return cls(name=name, found=load_policy(name, partial(find_policy, name, named)))

    def build(self, workload: Workload) -> Policy:
        """Return the policy for these recent requests. Raise `ConfigError` if it cannot be built."""
        return load_policy(self.name, lambda: build_policy(self.found, self.name, workload))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The requests that each policy gets. With `is_recorded`, they arrive and end as recorded."""

    tasks: Sequence[Arrival]
    is_recorded: bool

    def draw(self, seed: int, resource: Resource, capacity: float) -> list[Arrival]:
        """Return the arrivals of one round. Raise `ConfigError` if the nodes are too few for any."""
        if self.is_recorded:
            return [replace(task, at_s=task.at_s - self.tasks[0].at_s) for task in self.tasks]
        requests = [task.request for task in self.tasks]
        arrivals = draw_arrivals_to_demand(requests, capacity, _DEMAND, seed, resource)
        if not any(getattr(arrival.request, resource) for arrival in arrivals):
            raise ConfigError(
                f"each request of the trace is larger than {_DEMAND:.0%} of the nodes together."
            )
        return arrivals


@dataclass(slots=True, kw_only=True)
class TimedPolicy:
    """A policy that measures how long another policy takes for each decision. Its errors become `ConfigError`s.

    It raises `CancelledError` once the report is interrupted, because it runs in a thread.
    """

    name: str
    policy: Policy
    report: Report
    times_s: list[float] = field(default_factory=list)

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        if self.report.is_interrupted:
            raise asyncio.CancelledError
        began = time.perf_counter()
        try:
            return self.policy.place(request, snapshot, avoid=avoid)
        except BaseException as problem:  # noqa: BLE001 - a policy is foreign code and may even raise SystemExit
            raise ConfigError(f"policy {self.name} failed ({format_error(problem)}).") from None
        finally:
            self.times_s.append(time.perf_counter() - began)


async def measure(
    report: Report,
    policies: Sequence[FoundPolicy],
    clusters: Mapping[str, Sequence[Node]],
    trace: Trace,
    rounds: int,
) -> None:
    """Let each policy place the trace on each cluster. All pairs of policy and cluster take turns."""
    requests = Counter(task.request for task in trace.tasks)
    runs = {}
    for cluster, nodes in clusters.items():
        snapshot = Snapshot.of(nodes)
        report.notes += _find_impossible(cluster, snapshot, requests)
        workload = Workload.of([task.request for task in trace.tasks], snapshot)
        resource, capacity = choose_resource(nodes, trace.tasks)
        for policy in policies:
            runs[f"{policy.name} on {cluster}"] = partial(
                _run, report, policy, workload, snapshot, trace, resource, capacity
            )
    rounds = 1 if trace.is_recorded else rounds
    for count, (name, _) in enumerate(take_turns("placement", list(runs), rounds=rounds, warm_up=0)):
        done, times_s = await asyncio.to_thread(runs[name], _FIRST_SEED + count // len(runs))
        if done.at_100 is not None and not trace.is_recorded:
            report.add(f"allocated at 100 %/{name}", 100 * done.at_100 / done.capacity, "%")
        report.add(f"allocated at the end/{name}", 100 * done.at_end / done.capacity, "%")
        report.add(f"refused/{name}", 100 * done.refused / done.arrived, "%")
        for percent in (50, 99):
            report.add(f"decision p{percent}/{name}", float(np.percentile(times_s, percent)) * 1e6, "µs")


def _run(
    report: Report,
    policy: FoundPolicy,
    workload: Workload,
    snapshot: Snapshot,
    trace: Trace,
    resource: Resource,
    capacity: float,
    seed: int,
) -> tuple[TraceRun, list[float]]:
    """Run one round of a policy on a cluster. Return its result, and the seconds of each decision."""
    timed = TimedPolicy(name=policy.name, policy=policy.build(workload), report=report)
    done = run_trace(timed, snapshot, trace.draw(seed, resource, capacity), resource=resource)
    return done, timed.times_s


def choose_resource(nodes: Sequence[Node], tasks: Sequence[Arrival]) -> tuple[Resource, float]:
    """Return the resource to compare and its total: GPUs if trace and nodes have any, else CPUs, else memory."""
    for resource in RESOURCE_NAMES:
        capacity = float(sum(getattr(node, resource) for node in nodes))
        if capacity and any(getattr(task.request, resource) for task in tasks):
            return resource, capacity
    raise ConfigError("the trace requests no resource that the nodes have.")


def _find_impossible(cluster: str, snapshot: Snapshot, requests: Mapping[Request, int]) -> list[str]:
    """Return a sentence about the requests that would fit no node of the empty cluster, if there are any."""
    policy = get_policy("pack")
    count = sum(count for each, count in requests.items() if policy.place(each, snapshot).is_never)
    what = f"{count} of {format_count(sum(requests.values()), 'request')} would fit no node of {cluster}"
    return [f"{what}, even an empty one, and count as refused."] if count else []
