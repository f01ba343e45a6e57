"""Streams of requests for `roost simulate`, drawn from a trace, and the resource that is compared."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from roost.placement import Node
from roost.placement.model.format import format_count
from roost.placement.trace_run import Arrival, Resource, draw_arrivals_to_demand, draw_poisson_arrivals
from roost.scheduler.errors import ConfigError

FIRST_SEED = 42
MOST_ARRIVALS = 1_000_000
"""At most this many arrivals in all seeds together. They take minutes per policy, and some hundred MB."""
_MOST_TIMES = 10_000
"""At most this multiple of the nodes' resources may be requested, because each percent adds a point to the curves."""
_DEFAULTS = {"seeds": 3, "demand": 1.3, "load": 1.05, "arrivals": None}
_USED = {"recorded": (), "departures": ("load", "arrivals", "seeds"), "demand": ("demand", "seeds")}


def check(arguments: argparse.Namespace) -> None:
    """Set the defaults of missing options. Raise `ConfigError` for an option without effect, or not above 0."""
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
    if arguments.recorded:
        first_s = tasks[0].at_s
        streams = {FIRST_SEED: [replace(task, at_s=task.at_s - first_s) for task in tasks]}
        description = f"{format_count(len(tasks), 'request')} as recorded"
    else:
        expected, less, description, draw = _plan(arguments, tasks, resource, capacity)
        seeds = min(arguments.seeds, MOST_ARRIVALS + 1)
        if expected * seeds > MOST_ARRIVALS:  # drawing them would take minutes
            raise ConfigError(
                f"that would be more than {MOST_ARRIVALS:,} arrivals for {format_count(seeds, 'seed')}: "
                f"give {less} or fewer --seeds."
            )
        try:
            streams = {seed: draw(seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds)}
        except ValueError as problem:
            raise ConfigError(str(problem)) from None
    for stream in streams.values():
        requested = _sum(stream, resource)
        if not (requested or arguments.departures):
            raise ConfigError(
                f"--demand {arguments.demand:g} leaves no request of the trace: give a larger --demand, "
                "or --recorded, which takes all requests as they came."
            )
        if requested > _MOST_TIMES * capacity:
            raise ConfigError(
                f"the requests exceed the nodes' resources more than {_MOST_TIMES:,} times: request less, or add nodes."
            )
    return streams, description


def _plan(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> tuple[float, str, str, Callable[[int], list[Arrival]]]:
    """Return the expected arrivals per seed, advice for fewer, a description, and the function that draws a stream."""
    if not arguments.departures:
        demand, requests = arguments.demand, [task.request for task in tasks]
        return (
            max(1.0, demand * capacity * len(tasks) / _sum(tasks, resource)),
            "a lower --demand",
            f"Random requests for {demand * 100:g} % of the resources, without departures",
            lambda seed: draw_arrivals_to_demand(requests, capacity, demand, seed, resource),
        )
    count, load = arguments.arrivals or len(tasks), arguments.load
    ending = [(task.request, task.duration_s) for task in tasks if task.duration_s]
    work = sum(getattr(request, resource) * duration_s for request, duration_s in ending)
    running = load * capacity * sum(duration_s for _, duration_s in ending) / work if work else 0.0
    return (
        min(count, MOST_ARRIVALS + 1) + running,
        "a lower --load, fewer --arrivals",
        f"{count} Poisson arrivals at a load of {load:g}, with departures",
        lambda seed: draw_poisson_arrivals(tasks, capacity, load, count, seed, resource),
    )


def _sum(arrivals: Iterable[Arrival], resource: Resource) -> float:
    return float(sum(getattr(arrival.request, resource) for arrival in arrivals))
