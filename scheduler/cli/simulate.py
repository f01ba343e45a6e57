"""`roost simulate`: replay a stream of requests on a cluster under several policies, and compare them."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from roost.placement import NOWHERE, Decision, Node, Policy, Request, Snapshot, Workload
from roost.placement.model.format import format_count
from roost.placement.shipped_policies import SHIPPED, build_policy, get_policy
from roost.placement.trace_run import Arrival, Resource, assume_promised_use, replay
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.service_folder import service_folder
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError
from roost.scheduler.policies.loader import find_policy, format_error, load_policy
from roost.scheduler.policies.offline import read_snapshot
from roost.scheduler.policies.sandbox import check_placement
from roost.scheduler.service.decision_log import FILE_NAME
from roost.scheduler.simulate import request_streams
from roost.scheduler.simulate.report import Comparison, PolicyRun
from roost.scheduler.simulate.trace_files import add_nodes, read_ended, read_nodes, read_trace

from .options import connect_scheduler, scheduler_options

_PROGRESS_EVERY = 200


def simulate(arguments: argparse.Namespace) -> int:
    """Replay the trace, then print, write and draw the result. The exit code is 1 if `--plot` could not draw."""
    _check_paths(arguments)
    settings, _ = load_settings(arguments.backend, scheduler_options(arguments))
    policies = arguments.policy or list(SHIPPED)
    pyplot = _load_pyplot(arguments.plot) if arguments.plot else None
    tasks, note = _read_tasks(arguments)
    nodes = _read_nodes(arguments)
    if impossible := count_impossible(nodes, tasks):
        what = f"{impossible} of {format_count(len(tasks), 'request')}"
        note = f"{what} would fit no node, even an empty one, and count as refused. {note}".rstrip()
    resource, capacity = request_streams.choose_resource(nodes, tasks)
    streams, description = request_streams.build_streams(arguments, tasks, resource, capacity)
    comparison = Comparison(
        trace=arguments.trace or FILE_NAME,
        stream=description,
        note=note,
        nodes=len(nodes),
        capacity=capacity,
        resource=resource,
        runs=compare(policies, settings.policies, nodes, tasks, streams, resource),
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
    except OSError as problem:
        raise ConfigError(f"not written: {problem}") from None
    return 1 if arguments.plot and pyplot is None else 0


def compare(
    policies: Sequence[str],
    named: Mapping[str, str],
    nodes: Sequence[Node],
    tasks: Sequence[Arrival],
    streams: Mapping[int, Sequence[Arrival]],
    resource: Resource,
) -> dict[str, list[PolicyRun]]:
    """Replay each stream under each policy, and return the runs by policy. A `ConfigError` names a failed policy.

    `named` has the operator's policies by name. `streams` has the streams by seed.
    """
    workload = Workload.of([task.request for task in tasks], Snapshot.of(nodes))
    # errors describe failures; no stack on stderr
    logging.getLogger("roost").addHandler(logging.NullHandler())
    known = {name: load_policy(name, partial(find_policy, name, named)) for name in policies}

    def make(name: str) -> Policy:
        return load_policy(name, lambda: build_policy(known[name], name, workload))

    for name in known:
        make(name)  # a broken policy fails here, before the first replay
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
                done = replay(timed, Snapshot.of(nodes), stream, resource=resource, workload=workload)
                runs[name].append(PolicyRun(seed=seed, replay=done, decision_ms=timed.decision_ms()))
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


def _check_paths(arguments: argparse.Namespace) -> None:
    request_streams.check(arguments)
    if arguments.empty and arguments.nodes:
        raise ConfigError("--empty has no effect with --nodes, because no kernels run there: leave it out.")
    for option in ("json", "plot"):
        path = getattr(arguments, option)
        if path not in (None, "-") and not Path(path).parent.is_dir():
            raise ConfigError(f"--{option} {path}: there is no folder {Path(path).parent}.")


def _read_tasks(arguments: argparse.Namespace) -> tuple[list[Arrival], str]:
    """Return the trace, and a note about kernels that are left out because they still run."""
    if arguments.trace:
        return read_trace(arguments.trace), ""
    if not arguments.live:
        raise ConfigError("no trace: name a file. Only --live uses the scheduler's decision log by default.")
    path = service_folder(arguments.backend, connect_scheduler(arguments).options) / FILE_NAME
    if not path.exists():
        raise ConfigError("the scheduler has made no decision yet: name a trace.")
    if arguments.empty:
        return read_trace(str(path)), ""
    tasks, running = read_ended(str(path))
    if not tasks:
        raise ConfigError("all kernels in the decision log still run: give --empty, or name a trace.")
    note = f"{format_count(running, 'kernel')} left out, still running on the nodes (--empty includes them)."
    return tasks, note if running else ""


def _read_nodes(arguments: argparse.Namespace) -> list[Node]:
    """Return the chosen nodes and those of `--add`, with metrics that show no use beyond the promises."""
    if arguments.nodes:
        nodes = read_nodes(arguments.nodes)
    else:
        snapshot = (
            read_snapshot(arguments.snapshot)
            if arguments.snapshot
            else Snapshot.from_dict({"nodes": wait_for(connect_scheduler(arguments).nodes())})
        )
        nodes = [snapshot.node(node_id) for node_id in snapshot.nodes]
    if arguments.empty:
        nodes = [node.as_empty() for node in nodes]
    for specification in arguments.add:
        nodes += add_nodes(nodes, specification)
    try:
        Snapshot.of(nodes)
    except ValueError as problem:  # two nodes have the same name
        raise ConfigError(f"{arguments.nodes or 'nodes'}: {problem}") from None
    return [assume_promised_use(node) for node in nodes]


def _load_pyplot(path: str) -> Any:
    """Return pyplot, or None if matplotlib is missing. Raise `ConfigError` if it cannot write files like `path`."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("roost: no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return None
    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in known:
        raise ConfigError(f"--plot {path}: the file name must end with one of {', '.join(sorted(known))}.")
    return pyplot
