"""`roost simulate`: what policies would have made, or would make, of a stream of requests on a cluster."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from roost.placement import NOWHERE, Decision, Node, Policy, Profile, Request, Snapshot
from roost.placement.later import LaterSequence
from roost.placement.policies import SHIPPED, made
from roost.placement.replay import (
    Arrival,
    Resource,
    arrivals_at_demand,
    as_promised,
    poisson_arrivals,
    replay,
)
from roost.placement.text import plural

from .actions import ask, client_of, options_of
from .comparison import Comparison, Run
from .config import load
from .decision_log import FILE_NAME
from .errors import ConfigError
from .guard import check_placement
from .loading import found, loaded, told
from .offline import read_snapshot
from .operations import service_folder
from .traces import added, read_nodes, read_trace

FIRST_SEED = 42
_PROGRESS_EVERY = 200


def simulate(arguments: argparse.Namespace) -> int:
    """Replay, and print, write and draw what came of it. Exit code 1 when a picture was asked for and not drawn."""
    _check(arguments)
    named = load(arguments.backend, options_of(arguments)).policies
    policies = arguments.policy or list(SHIPPED)
    tasks = read_trace(arguments.trace or _own_log(arguments))
    nodes = _nodes(arguments)
    resource, capacity = _counted(nodes, tasks)
    try:
        streams, said = _streams(arguments, tasks, resource, capacity)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    pyplot = _pyplot() if arguments.plot else None
    comparison = Comparison(
        trace=arguments.trace or FILE_NAME,
        stream=said,
        nodes=len(nodes),
        capacity=capacity,
        resource=resource,
        runs=compare(policies, named, nodes, tasks, streams, resource),
    )
    document = json.dumps(comparison.to_dict(), ensure_ascii=False)
    if arguments.json == "-":
        print(document)
    else:
        comparison.show()
    try:
        if arguments.json not in (None, "-"):
            Path(arguments.json).write_text(document + "\n", encoding="utf-8")
        if pyplot is not None:
            comparison.draw(pyplot, arguments.plot)
    except (OSError, ValueError) as problem:  # matplotlib: an ending that it cannot write
        raise ConfigError(f"not written: {problem}") from None
    return 1 if arguments.plot and pyplot is None else 0


def compare(
    policies: Sequence[str],
    named: Mapping[str, str],
    nodes: Sequence[Node],
    tasks: Sequence[Arrival],
    streams: Mapping[int, Sequence[Arrival]],
    resource: Resource,
) -> dict[str, list[Run]]:
    """Each policy on each stream, these by seed, with progress on stderr.

    `named` are the operator's policies. Raises `ConfigError` that names a policy.
    """
    profile = Profile.of([task.request for task in tasks], Snapshot.of(nodes))
    logging.getLogger("roost").addHandler(logging.NullHandler())  # a sentence says what fails, no stack
    known = {name: loaded(name, partial(found, name, named)) for name in policies}

    def make(name: str) -> Policy:
        return loaded(name, lambda: made(known[name], name, profile))

    for name in known:
        make(name)  # what is wrong is told before anything runs
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    runs: dict[str, list[Run]] = {name: [] for name in policies}
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("", total=len(runs) * sum(map(len, streams.values())))
        for name in runs:
            for seed, stream in streams.items():
                progress.update(bar, description=f"{name}, seed {seed}")
                timed = Timed(
                    make(name),
                    name,
                    lambda: progress.advance(bar, _PROGRESS_EVERY),
                    is_checked=known[name] is not SHIPPED.get(name),
                )
                done = replay(timed, Snapshot.of(nodes), stream, resource=resource, profile=profile)
                runs[name].append(Run(seed=seed, replay=done, decision_ms=timed.decision_ms()))
    return runs


class Timed:
    """A policy with a clock; what it raises becomes a `ConfigError` that names it.

    With `is_checked`, as for all that are not shipped, so does a decision that cannot be (`guard`).
    """

    def __init__(
        self, policy: Policy, name: str, on_progress: Callable[[], object], *, is_checked: bool
    ) -> None:
        self.name = name
        self._is_checked = is_checked
        self._policy = policy
        self._on_progress = on_progress
        self._times_s: list[float] = []

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        began = time.perf_counter()
        try:
            decision = self._policy.place(request, snapshot, avoid=avoid)
            self._times_s.append(time.perf_counter() - began)
            if self._is_checked:
                _check_decision(decision, request, snapshot, avoid)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - anybody's code, which may even ask to exit
            raise ConfigError(f"policy {self.name} failed ({told(problem)}).") from None
        if len(self._times_s) % _PROGRESS_EVERY == 0:
            self._on_progress()
        return decision

    def decision_ms(self) -> tuple[float, float]:
        """Median, and the slowest in a hundred."""
        p50, p99 = np.percentile(self._times_s, [50, 99]) * 1e3 if self._times_s else (0.0, 0.0)
        return float(p50), float(p99)


def _check_decision(decision: Any, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> None:
    """As `guard.checked`, but for the grounds, which nobody reads here."""
    if not isinstance(decision, Decision):
        raise TypeError(f"place gave {type(decision).__name__}, not a Decision")
    check_placement(decision.placement, request, snapshot, avoid)
    is_later = isinstance(decision.refusals, LaterSequence)  # all nodes' grounds: a pipeline has some
    if decision.placement is None and not (is_later or decision.refusals or decision.refused):
        raise ValueError("it gave neither a node nor a refusal")


def _check(arguments: argparse.Namespace) -> None:
    for option in ("seeds", "demand", "load", "arrivals"):
        value = getattr(arguments, option)
        if value is not None and value <= 0:
            raise ConfigError(f"--{option} {value:g} simulates nothing: give more than 0.")
    for option in ("json", "plot"):
        path = getattr(arguments, option)
        if path not in (None, "-") and not Path(path).parent.is_dir():
            raise ConfigError(f"--{option} {path}: there is no folder {Path(path).parent}.")


def _own_log(arguments: argparse.Namespace) -> str:
    if not arguments.live:
        raise ConfigError(
            "which trace? Name a file; with --live the scheduler's own decisions are the default."
        )
    path = service_folder(arguments.backend, client_of(arguments).options) / FILE_NAME
    if not path.exists():
        raise ConfigError("the scheduler has decided nothing yet that could be simulated: name a trace.")
    return str(path)


def _nodes(arguments: argparse.Namespace) -> list[Node]:
    """The nodes that were asked for, and those added, used as promised."""
    if arguments.nodes:
        nodes = read_nodes(arguments.nodes)
    else:
        snapshot = (
            read_snapshot(arguments.snapshot)
            if arguments.snapshot
            else Snapshot.from_dict({"nodes": ask(client_of(arguments).nodes())})
        )
        nodes = [snapshot.node(node_id) for node_id in snapshot.nodes]
    if arguments.empty:
        nodes = [node.emptied() for node in nodes]
    for specification in arguments.add:
        nodes += added(nodes, specification)
    try:
        Snapshot.of(nodes)
    except ValueError as problem:  # two of one name
        raise ConfigError(f"{arguments.nodes or 'nodes'}: {problem}") from None
    return [as_promised(node) for node in nodes]


def _counted(nodes: Sequence[Node], tasks: Sequence[Arrival]) -> tuple[Resource, float]:
    """What is counted, and how much there is: GPUs where there are and some are asked for, else CPUs, else memory."""
    resources: tuple[Resource, ...] = ("gpus", "cpus", "memory_bytes")
    for resource in resources:
        capacity = float(sum(getattr(node, resource) for node in nodes))
        if capacity and any(getattr(task.request, resource) for task in tasks):
            return resource, capacity
    raise ConfigError("the trace asks for nothing that the nodes have: there is nothing to allocate.")


def _streams(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> tuple[dict[int, list[Arrival]], str]:
    """What is replayed, by seed, and said in a few words."""
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    if arguments.recorded:
        first_s = tasks[0].at_s
        return {FIRST_SEED: [replace(task, at_s=task.at_s - first_s) for task in tasks]}, (
            f"{plural(len(tasks), 'request')} as they came"
        )
    if arguments.departures:
        count = arguments.arrivals or len(tasks)
        said = f"{count} Poisson arrivals at a load of {arguments.load:g}, with departures"
        return {
            seed: poisson_arrivals(
                tasks, capacity, arguments.load, count, seed, resource=resource, is_steady=True
            )
            for seed in seeds
        }, said
    requests = [task.request for task in tasks]
    said = f"Requests for {arguments.demand * 100:g} % of what there is, at random, without departures"
    return {
        seed: arrivals_at_demand(requests, capacity, arguments.demand, seed, resource) for seed in seeds
    }, said


def _pyplot() -> Any:
    """matplotlib for files, or None and a sentence on stderr."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("roost: no plot: matplotlib is not installed (pip install 'roost[bench]')", file=sys.stderr)
        return None
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot
