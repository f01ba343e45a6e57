"""What `roost simulate` replays: streams of requests made of a trace, and what of them is counted."""

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
"""Of all seeds together: some minutes for a policy, some hundred MB."""
_MOST_TIMES = 10_000
"""Requests ask for at most so many times what there is: each percent is a point of the curves."""
_DEFAULTS = {"seeds": 3, "demand": 1.3, "load": 1.05, "arrivals": None}
_USED = {"recorded": (), "departures": ("load", "arrivals", "seeds"), "demand": ("demand", "seeds")}


def check(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that simulate nothing or have no effect; fill in the others' defaults."""
    kind = "recorded" if arguments.recorded else "departures" if arguments.departures else "demand"
    for option, default in _DEFAULTS.items():
        value = getattr(arguments, option)
        if value is None:
            setattr(arguments, option, default)
        elif option not in _USED[kind]:
            why = "without --departures" if kind == "demand" else f"with --{kind}"
            raise ConfigError(f"--{option} has no effect {why}: leave it out.")
        elif value <= 0:
            raise ConfigError(f"--{option} must be more than 0, to simulate anything.")


def choose_resource(nodes: Sequence[Node], tasks: Sequence[Arrival]) -> tuple[Resource, float]:
    """What is counted, and how much there is: GPUs where there are and some are asked for, else CPUs, else memory."""
    resources: tuple[Resource, ...] = ("gpus", "cpus", "memory_bytes")
    for resource in resources:
        capacity = float(sum(getattr(node, resource) for node in nodes))
        if capacity and any(getattr(task.request, resource) for task in tasks):
            return resource, capacity
    raise ConfigError("the trace asks for nothing that the nodes have: there is nothing to allocate.")


def build_streams(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> tuple[dict[int, list[Arrival]], str]:
    """What is replayed, by seed, and said in a few words. Raises `ConfigError`, before much is made."""
    _check_size(arguments, tasks, resource, capacity)
    try:
        made, said = _made(arguments, tasks, resource, capacity)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    for stream in made.values():
        asked = _sum(stream, resource)
        if not (asked or arguments.departures):
            raise ConfigError(
                f"no request of the trace is left at a demand of {arguments.demand:g}: give a greater --demand."
            )
        if asked > _MOST_TIMES * capacity:
            raise ConfigError(
                f"that asks for more than {_MOST_TIMES:,} times what the nodes have: ask for less, or add nodes."
            )
    return made, said


def _check_size(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> None:
    """Raise `ConfigError` where too many arrivals are to be expected: they would be made for minutes."""
    if arguments.recorded:
        return  # as many as were read
    most = MOST_ARRIVALS + 1
    seeds = min(arguments.seeds, most)
    if arguments.departures:
        ending = [task for task in tasks if task.duration_s]
        work = sum(getattr(task.request, resource) * (task.duration_s or 0.0) for task in ending)
        each = float(min(arguments.arrivals or len(tasks), most))
        if work:  # those that run at first
            each += arguments.load * capacity * sum(task.duration_s or 0.0 for task in ending) / work
        less = "a lower --load, fewer --arrivals"
    else:
        each = max(1.0, arguments.demand * capacity * len(tasks) / _sum(tasks, resource))
        less = "a lower --demand"
    if each * seeds > MOST_ARRIVALS:
        raise ConfigError(
            f"that would be more than {MOST_ARRIVALS:,} arrivals, {format_count(seeds, 'seed')} taken together: "
            f"give {less} or fewer --seeds."
        )


def _made(
    arguments: argparse.Namespace, tasks: Sequence[Arrival], resource: Resource, capacity: float
) -> tuple[dict[int, list[Arrival]], str]:
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    if arguments.recorded:
        first_s = tasks[0].at_s
        return {FIRST_SEED: [replace(task, at_s=task.at_s - first_s) for task in tasks]}, (
            f"{format_count(len(tasks), 'request')} as they came"
        )
    if arguments.departures:
        count = arguments.arrivals or len(tasks)
        said = f"{count} Poisson arrivals at a load of {arguments.load:g}, with departures"
        return {
            seed: draw_poisson_arrivals(
                tasks, capacity, arguments.load, count, seed, resource=resource, is_steady=True
            )
            for seed in seeds
        }, said
    requests = [task.request for task in tasks]
    said = f"Requests for {arguments.demand * 100:g} % of what there is, at random, without departures"
    return {
        seed: draw_arrivals_to_demand(requests, capacity, arguments.demand, seed, resource) for seed in seeds
    }, said


def _sum(arrivals: Iterable[Arrival], resource: Resource) -> float:
    return float(sum(getattr(arrival.request, resource) for arrival in arrivals))
