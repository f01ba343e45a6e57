"""Runs streams of requests under one policy, with the times of its decisions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from roost.placement import NOWHERE, Decision, Node, Policy, Request, Snapshot, Workload
from roost.placement.shipped_policies import SHIPPED, build_policy
from roost.placement.trace_run import Arrival, Resource, run_trace
from roost.scheduler.errors import ConfigError
from roost.scheduler.policies.decision_check import check_placement
from roost.scheduler.policies.loader import find_policy, format_error, load_policy

from .report import PolicyRun

PROGRESS_EVERY = 200
"""`PolicyRuns.run` reports its progress after so many decisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """The work of each policy. `streams` has the requests by seed."""

    nodes: Sequence[Node]
    streams: Mapping[int, Sequence[Arrival]]
    resource: Resource
    workload: Workload


class PolicyRuns:
    """The runs of one policy in this process. A `ConfigError` says why a policy cannot be loaded.

    `named` has the operator's policies by name.
    """

    def __init__(self, name: str, named: Mapping[str, str], streams: Streams) -> None:
        # errors describe failures; no stack on stderr
        logging.getLogger("roost").addHandler(logging.NullHandler())
        self._name = name
        self._streams = streams
        self._found = load_policy(name, partial(find_policy, name, named))
        self._build()  # a broken policy fails here, before the first run

    def run(self, seed: int, on_progress: Callable[[], object]) -> PolicyRun:
        """Run the stream of this seed under a new policy. Raises `ConfigError` if the policy fails."""
        given = self._streams
        is_foreign = self._found is not SHIPPED.get(self._name)
        timed = TimedPolicy(self._build(), self._name, on_progress, is_checked=is_foreign)
        done = run_trace(
            timed,
            Snapshot.of(given.nodes),
            given.streams[seed],
            resource=given.resource,
            workload=given.workload,
        )
        done = replace(done, last=Snapshot.of(()))  # nobody reads it, and its caches cannot be pickled
        return PolicyRun(seed=seed, result=done, decision_ms=timed.decision_ms())

    def _build(self) -> Policy:
        return load_policy(self._name, lambda: build_policy(self._found, self._name, self._streams.workload))


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
        if len(self.times_s) % PROGRESS_EVERY == 0:
            self.on_progress()
        return decision

    def decision_ms(self) -> tuple[float, float]:
        """Return the median and the 99th percentile of the decision times in milliseconds."""
        p50, p99 = np.percentile(self.times_s, [50, 99]) * 1e3 if self.times_s else (0.0, 0.0)
        return float(p50), float(p99)
