"""`roost simulate`: run a stream of requests on a cluster under several policies, and compare them."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roost.placement import Node, NodeType, Snapshot
from roost.placement.model.format import format_count
from roost.placement.shipped_policies import SHIPPED
from roost.placement.trace_run import RESOURCE_NAMES, Arrival, Resource, assume_promised_use
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.client import Client
from roost.scheduler.client.service_folder import service_folder
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError
from roost.scheduler.policies.offline import read_snapshot
from roost.scheduler.service.decision_log import FILE_NAME
from roost.scheduler.simulate import request_streams
from roost.scheduler.simulate.comparison import compare, count_impossible
from roost.scheduler.simulate.report import Comparison
from roost.scheduler.simulate.trace_files import add_nodes, read_ended, read_nodes, read_trace

from .options import connect_scheduler, scheduler_options
from .tables import build_table, open_console, print_table

_FIGURES = {
    "REFUSED": "refused",
    "REQUESTS": "refused_requests",
    "FRAGMENTED": "fragmented",
    "P50 ms": "decision_p50_ms",
    "P99 ms": "decision_p99_ms",
}


def simulate(arguments: argparse.Namespace) -> int:
    """Run the trace, then print, write and draw the result. The exit code is 1 if `--plot` could not draw."""
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
        _show(comparison, has_ends=arguments.recorded or arguments.departures)
    try:
        if arguments.json not in (None, "-"):
            Path(arguments.json).write_text(document + "\n", encoding="utf-8")
        if pyplot is not None:
            comparison.draw(pyplot, arguments.plot)
    except OSError as problem:
        raise ConfigError(f"not written: {problem}") from None
    return 1 if arguments.plot and pyplot is None else 0


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
        raise ConfigError(
            f"the scheduler of the backend {arguments.backend} has made no decision yet: "
            "name a trace, or another --backend."
        )
    if arguments.empty:
        return read_trace(str(path)), ""
    tasks, running = read_ended(str(path))
    if not tasks:
        raise ConfigError("all kernels in the decision log still run: give --empty, or name a trace.")
    note = f"{format_count(running, 'kernel')} left out, still running on the nodes (--empty includes them)."
    return tasks, note if running else ""


def _read_nodes(arguments: argparse.Namespace) -> list[Node]:
    """Return the chosen nodes and those of `--add`, with metrics that show no use beyond the promises."""
    types: Sequence[NodeType] = ()
    if arguments.nodes:
        nodes = read_nodes(arguments.nodes)
    else:
        snapshot = (
            read_snapshot(arguments.snapshot)
            if arguments.snapshot
            else _read_live(connect_scheduler(arguments))
        )
        nodes = [snapshot.node(node_id) for node_id in snapshot.nodes]
        types = snapshot.node_types
    if arguments.empty:
        nodes = [node.as_empty() for node in nodes]
    for specification in arguments.add:
        nodes += add_nodes(nodes, specification, types)
    try:
        Snapshot.of(nodes)
    except ValueError as problem:  # two nodes have the same name
        raise ConfigError(f"{arguments.nodes or 'nodes'}: {problem}") from None
    return [assume_promised_use(node) for node in nodes]


def _read_live(client: Client) -> Snapshot:
    return Snapshot.from_dict(
        {"nodes": wait_for(client.nodes()), "node_types": wait_for(client.node_types())}
    )


def _show(comparison: Comparison, *, has_ends: bool) -> None:
    """Print the table of a comparison, best policy first.

    A cell that is too wide for the terminal is wrapped before its ±. `has_ends`: kernels end during the simulation, so
    that the sum of all requests says nothing about the resources in use.
    """
    name = RESOURCE_NAMES[comparison.resource]
    ends = {max(run.result.points) for run in next(iter(comparison.runs.values()))}
    end = "AT THE END" if has_ends or len(ends) > 1 else f"AT {max(ends)} %"
    figures = {"AT 100 %": "allocated_at_100"} if max(ends) > 100 and not has_ends else {}
    figures |= {end: "allocated_at_end", **_FIGURES}
    meaning = f"AT: {name} allocated when requests for that much had arrived. "
    if has_ends:
        meaning = f"AT THE END: {name} allocated when the last request had arrived. "
    table = build_table("POLICY", *figures, right=list(figures))
    table.columns[0].no_wrap = True
    for policy in comparison.ranked():
        cells = [_format_cell(name, comparison.of(policy, figure)) for name, figure in figures.items()]
        table.add_row(comparison.shorten(policy), *cells)
    out = open_console()
    capacity = _format_capacity(comparison.capacity, comparison.resource)
    out.print(f"{comparison.stream}, on {format_count(comparison.nodes, 'node')} with {capacity}.")
    if comparison.note:
        out.print(comparison.note)
    out.print()
    print_table(out, table)
    seeds = len(next(iter(comparison.runs.values())))
    out.print(
        f"\nIn percent. {meaning}"
        "REFUSED: share of the requested amount. REQUESTS: share of the requests that were refused. "
        "FRAGMENTED: free, but probably of no use to requests like these. P50, P99: time of a decision."
        + (f" Means of {seeds} seeds ± standard deviation." if seeds > 1 else ""),
        style="dim",
    )


def _format_cell(name: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    if name.endswith("ms"):
        return f"{statistics.fmean(values):.3f}"
    spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _format_capacity(capacity: float, resource: Resource) -> str:
    if resource == "memory_bytes":
        return f"{capacity / 2**30:.0f} GiB memory"
    return format_count(capacity, RESOURCE_NAMES[resource].removesuffix("s"))


def _load_pyplot(path: str) -> Any:
    """Return pyplot, or None if matplotlib is missing. Raise `ConfigError` if it cannot write files like `path`."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("roost: no plot: matplotlib is not installed (`pip install matplotlib`)", file=sys.stderr)
        return None
    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in known:
        raise ConfigError(f"--plot {path}: the file name must end with one of {', '.join(sorted(known))}.")
    return pyplot
