"""The subcommands of `roost bench`: from their options to the table and the JSON file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from roost.placement import Snapshot
from roost.placement.shipped_policies import SHIPPED
from roost.scheduler.backends.spec import describe_extra
from roost.scheduler.cli.options import connect_scheduler, request_config, scheduler_options
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.service_folder import service_folder
from roost.scheduler.config.files import load_settings
from roost.scheduler.config.shared_sections import is_module_name
from roost.scheduler.errors import ConfigError

from . import churn, density, latency, placement, policies, starts
from . import compare as comparison
from .policies import FoundPolicy, Trace
from .report import Report
from .runs import Measure, measure_sides, read_rounds, run
from .sides import Side, read_sides
from .trace_files import is_list, read_cluster, read_trace
from .trace_run import empty_node

_KERNELS, _QUICK_KERNELS = 1_000, 20
_SIZES, _PLACEMENT_ROUNDS, _TRACE_ROUNDS = (1_000, 10_000, 100_000), 7, 3


def start(arguments: argparse.Namespace) -> int:
    """Run `roost bench start`."""
    rounds = read_rounds(arguments)

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await starts.measure(report, sides, rounds=rounds, at_once=arguments.at_once)

    return _run(arguments, measure, rounds=rounds, at_once=arguments.at_once)


def measure_latency(arguments: argparse.Namespace) -> int:
    """Run `roost bench latency`."""
    rounds = read_rounds(arguments)

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await latency.measure(report, sides, rounds=rounds)

    return _run(arguments, measure, rounds=rounds)


def fill(arguments: argparse.Namespace) -> int:
    """Run `roost bench density`."""
    _check_memory("density")
    limits = density.Limits(
        kernels=arguments.kernels or (_QUICK_KERNELS if arguments.quick else _KERNELS),
        free=arguments.keep_free,
        latency_s=arguments.latency,
    )
    rounds = 1 if arguments.quick else arguments.rounds or 3

    packages = [name for name in arguments.packages.split(",") if name]
    for name in packages:
        if not is_module_name(name):
            raise ConfigError(f"--packages {name}: give names as in an import, with commas: numpy,pandas")

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await density.measure(report, sides, rounds=rounds, limits=limits, packages=packages)

    settings = {"kernels": limits.kernels, "keep_free": limits.free, "latency_s": limits.latency_s}
    return _run(arguments, measure, rounds=rounds, packages=arguments.packages, **settings)


def run_churn(arguments: argparse.Namespace) -> int:
    """Run `roost bench churn`."""

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        for side in sides:
            await churn.measure(report, side, for_s=arguments.seconds, at_once=arguments.at_once)

    return _run(arguments, measure, seconds=arguments.seconds, at_once=arguments.at_once)


def decide(arguments: argparse.Namespace) -> int:
    """Run `roost bench placement`: on a trace if there is one, else on clusters that are drawn."""
    settings, _ = load_settings(arguments.backend, scheduler_options(arguments))
    if arguments.trace or arguments.live:
        names = arguments.policy or list(SHIPPED)
        found = [FoundPolicy.find(name, settings.policies) for name in dict.fromkeys(names)]
        return _place_trace(arguments, found)
    if arguments.cluster:
        raise ConfigError("--cluster has no effect without a trace: name one, or give --live.")
    plan = placement.Plan(
        policies=tuple(dict.fromkeys(arguments.policy or ["balanced"])),
        sizes=tuple(dict.fromkeys(arguments.nodes or _SIZES[: 1 if arguments.quick else None])),
        rounds=arguments.rounds or (2 if arguments.quick else _PLACEMENT_ROUNDS),
        decisions=200 if arguments.quick else 2_000,
    )
    placement.check(plan)
    found = [FoundPolicy.find(name, settings.policies) for name in plan.policies]
    report = Report("placement", **asdict(plan))
    return run(arguments, report, nullcontext(lambda: placement.measure(report, plan, found)))


def _place_trace(arguments: argparse.Namespace, found: Sequence[FoundPolicy]) -> int:
    """Compare policies on a trace or on the scheduler's own log, and return the exit code."""
    if arguments.trace and arguments.live:
        raise ConfigError("Give a trace or --live, not both.")
    if arguments.nodes:
        raise ConfigError("--nodes has no effect on a trace: give --cluster, or leave it out.")
    rounds = arguments.rounds or (1 if arguments.quick else _TRACE_ROUNDS)
    client = connect_scheduler(arguments) if arguments.live or not arguments.cluster else None
    if arguments.live:
        assert client is not None
        path = str(service_folder(arguments.backend, client.options) / "log")
    else:
        path = arguments.trace
    trace = Trace(tasks=read_trace(path), is_recorded=not is_list(path))
    clusters = {Path(file).name: read_cluster(file) for file in arguments.cluster}
    if client is not None and not clusters:
        nodes = Snapshot.from_dict({"nodes": wait_for(client.nodes())})
        clusters = {arguments.backend: [empty_node(nodes.node(node_id)) for node_id in nodes.nodes]}
    names = [policy.name for policy in found]
    report = Report("placement", trace=path, clusters=list(clusters), policies=names, rounds=rounds)
    measurement = partial(policies.measure, report, found, clusters, trace, rounds)
    return run(arguments, report, nullcontext(measurement))


def compare(arguments: argparse.Namespace) -> int:
    """Run `roost bench compare`. The exit code is 0 even if figures have changed."""
    before, after = comparison.read(arguments.before), comparison.read(arguments.after)
    if before["benchmark"] != after["benchmark"]:
        raise ConfigError(
            f"{arguments.before} is a result of {before['benchmark']}, {arguments.after} one of {after['benchmark']}: "
            "compare two results of the same kind."
        )
    comparison.show(before, after, comparison.compare(before, after))
    return 0


def _check_memory(name: str) -> None:
    """Raise `ConfigError` if the memory of processes cannot be read here."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise ConfigError(f"roost bench {name} needs Linux: there is no /proc/self/smaps_rollup here.")


def _run(arguments: argparse.Namespace, measure: Measure, **settings: Any) -> int:
    """Read the sides from the options, compare them, and return the exit code.

    Raise `ConfigError` if ipykernel, whose kernels are measured, is not installed here.
    """
    if find_spec("ipykernel") is None:
        missing = f"the package ipykernel is missing: {describe_extra('bench')}"
        raise ConfigError(f"roost bench {arguments.command} cannot run here, because {missing}.")
    request = request_config(arguments)
    config = {"backend": arguments.backend, **request}
    sides = read_sides(config, arguments.baseline or ["plain"], scheduler_options(arguments))
    names = [side.name for side in sides]
    report = Report(arguments.command, backend=arguments.backend, request=request, sides=names, **settings)
    return measure_sides(arguments, report, sides, measure)
