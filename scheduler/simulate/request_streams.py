"""Streams of requests for `roost simulate`, drawn from a trace, and the resource that is compared."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace

from roost.placement import Node
from roost.placement.format import format_count
from roost.placement.replay import Arrival, Resource, draw_arrivals_to_demand, draw_poisson_arrivals
from roost.scheduler.errors import ConfigError

FIRST_SEED = 42
MOST_ARRIVALS = 1_000_000
"""At most this many arrivals in all seeds together: minutes per policy, and some hundred MB."""
_MOST_TIMES = 10_000
"""At most this multiple of the nodes' resources is requested: each percent is a point of the curves."""
_DEFAULTS = {"seeds": 3, "demand": 1.3, "load": 1.05, "arrivals": None}
_USED = {"recorded": (), "departures": ("load", "arrivals", "seeds"), "demand": ("demand", "seeds")}


def check(arguments: argparse.Namespace) -> None:
    """Fill in the defaults; raises `ConfigError` for options without effect and for amounts that are not positive."""
    kind = "recorded" if arguments.recorded else "departures" if arguments.departures else "demand"
    for option, default in _DEFAULTS.items():
        value = getattr(arguments, option)
        if value is None:
            setattr(arguments, option, default)
        elif option not in _USED[kind]:
            why = "without --departures" if kind == "demand" else f"with --{kind}"
            raise ConfigError(f"--{option} has no effect {why}: leave it out.")
        elif value <= 0:
            raise ConfigError(f"--{option} must be more than 0.")


def choose_resource(nodes: Sequence[Node], tasks: Sequence[Arrival]) -> tuple[Resource, float]:
    """Return the resource to compare and its total: GPUs if trace and nodes have any, else CPUs, else memory."""
    resources: tuple[Resource, ...] = ("gpus", "cpus", "memory_bytes")
    for resource in resources:
        capacity = float(sum(getattr(node, resource) for node in nodes))
        if capacity and any(getattr(task.request, resource) for task in tasks):
            return resource, capacity
    raise ConfigError("the trace requests no resource that the nodes have.")


def build_streams(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> tuple[dict[int, list[Arrival]], str]:
    """Return the streams by seed, and their description. Raises `ConfigError` early if they would be too long."""
    _check_size(arguments, tasks, resource, capacity)
    try:
        streams, description = _draw(arguments, tasks, resource, capacity)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    for stream in streams.values():
        requested = _sum(stream, resource)
        if not (requested or arguments.departures):
            raise ConfigError(
                f"a demand of {arguments.demand:g} leaves no request of the trace: give a greater --demand."
            )
        if requested > _MOST_TIMES * capacity:
            raise ConfigError(
                f"the requests exceed the nodes' resources more than {_MOST_TIMES:,} times: request less, or add nodes."
            )
    return streams, description


def _check_size(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> None:
    """Raise `ConfigError` if too many arrivals are expected: drawing them would take minutes."""
    if arguments.recorded:
        return  # these arrivals have been read already
    most = MOST_ARRIVALS + 1
    seeds = min(arguments.seeds, most)
    if arguments.departures:
        ending = [task for task in tasks if task.duration_s]
        work = sum(getattr(task.request, resource) * (task.duration_s or 0.0) for task in ending)
        each = float(min(arguments.arrivals or len(tasks), most))
        if work:  # kernels that run at the beginning
            each += arguments.load * capacity * sum(task.duration_s or 0.0 for task in ending) / work
        less = "a lower --load, fewer --arrivals"
    else:
        each = max(1.0, arguments.demand * capacity * len(tasks) / _sum(tasks, resource))
        less = "a lower --demand"
    if each * seeds > MOST_ARRIVALS:
        raise ConfigError(
            f"that would be more than {MOST_ARRIVALS:,} arrivals for {format_count(seeds, 'seed')}: "
            f"give {less} or fewer --seeds."
        )


def _draw(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> tuple[dict[int, list[Arrival]], str]:
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    if arguments.recorded:
        first_s = tasks[0].at_s
        return {FIRST_SEED: [replace(task, at_s=task.at_s - first_s) for task in tasks]}, (
            f"{format_count(len(tasks), 'request')} as recorded"
        )
    if arguments.departures:
        count = arguments.arrivals or len(tasks)
        description = f"{count} Poisson arrivals at a load of {arguments.load:g}, with departures"
        return {
            seed: draw_poisson_arrivals(tasks, capacity, arguments.load, count, seed, resource)
            for seed in seeds
        }, description
    requests = [task.request for task in tasks]
    description = f"Random requests for {arguments.demand * 100:g} % of the resources, without departures"
    return {
        seed: draw_arrivals_to_demand(requests, capacity, arguments.demand, seed, resource) for seed in seeds
    }, description


def _sum(arrivals: Iterable[Arrival], resource: Resource) -> float:
    return float(sum(getattr(arrival.request, resource) for arrival in arrivals))
