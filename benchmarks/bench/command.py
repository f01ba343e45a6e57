"""The subcommands of `roost bench`: from their options to the table, the JSON file and the pictures."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roost.scheduler.cli.options import request_config, scheduler_options
from roost.scheduler.client.client import disconnect
from roost.scheduler.errors import ConfigError

from . import churn, density, latency, machine, placement, queue, scale, starts
from . import compare as comparison
from .embedded import embedded
from .report import Report
from .sides import Side, read_sides, world
from .world import private_world

Measure = Callable[[Report, Sequence[Side]], Awaitable[None]]
Measurement = Callable[[], Awaitable[None]]
_INTERRUPTED = 130
_PICTURES = (".png", ".svg", ".pdf")
_QUICK_ROUNDS, _ROUNDS = 3, 20
_QUICK_NODES = 20
_SIZES, _PLACEMENT_ROUNDS = (1_000, 10_000, 100_000), 7


def start(arguments: argparse.Namespace) -> int:
    """Run `roost bench start`."""
    rounds = _read_rounds(arguments)

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await starts.measure(report, sides, rounds=rounds, at_once=arguments.at_once)

    return _run(arguments, measure, rounds=rounds, at_once=arguments.at_once)


def measure_latency(arguments: argparse.Namespace) -> int:
    """Run `roost bench latency`."""
    rounds = _read_rounds(arguments)

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await latency.measure(report, sides, rounds=rounds)

    return _run(arguments, measure, rounds=rounds)


def fill(arguments: argparse.Namespace) -> int:
    """Run `roost bench density`."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise ConfigError("roost bench density needs Linux: there is no /proc/self/smaps_rollup here.")
    limits = density.Limits(
        kernels=arguments.kernels,
        free=arguments.keep_free,
        latency_s=arguments.latency,
        shares_machine=arguments.embedded,
    )
    rounds = 1 if arguments.quick else arguments.rounds or 3

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        packages = [name for name in arguments.packages.split(",") if name]
        await density.measure(report, sides, rounds=rounds, limits=limits, packages=packages)

    settings = {"kernels": limits.kernels, "keep_free": limits.free, "latency_s": limits.latency_s}
    return _run(arguments, measure, rounds=rounds, packages=arguments.packages, **settings)


def run_churn(arguments: argparse.Namespace) -> int:
    """Run `roost bench churn`."""

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        for side in sides:
            await churn.measure(report, side, for_s=arguments.seconds, at_once=arguments.at_once)

    return _run(arguments, measure, seconds=arguments.seconds, at_once=arguments.at_once)


def share(arguments: argparse.Namespace) -> int:
    """Run `roost bench queue`."""
    habits = queue.Habits(
        users=arguments.users,
        use_s=arguments.use,
        pause_s=arguments.pause,
        for_s=10.0 if arguments.quick else arguments.seconds,
        seed=random.randrange(10_000) if arguments.seed is None else arguments.seed,
        trace=arguments.trace,
        speed=arguments.speed,
    )
    if habits.trace:
        habits.read_arrivals()

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await queue.measure(report, sides, habits)

    return _run(arguments, measure, **asdict(habits))


def decide(arguments: argparse.Namespace) -> int:
    """Run `roost bench placement`."""
    plan = placement.Plan(
        policies=tuple(dict.fromkeys(arguments.policy or ["balanced"])),
        sizes=tuple(dict.fromkeys(arguments.nodes or _SIZES[: 1 if arguments.quick else None])),
        rounds=arguments.rounds or (2 if arguments.quick else _PLACEMENT_ROUNDS),
        decisions=200 if arguments.quick else 2_000,
    )
    placement.check(plan)
    report = Report("placement", **asdict(plan))

    return _report(arguments, report, nullcontext(lambda: placement.measure(report, plan)))


def simulate(arguments: argparse.Namespace) -> int:
    """Run `roost bench scale`."""
    nodes = min(arguments.nodes, _QUICK_NODES) if arguments.quick else arguments.nodes
    kernels = arguments.kernels or 10 * nodes
    size = scale.Size(nodes=nodes, kernels=kernels, at_once=arguments.at_once)
    scale.check(size)
    report = Report("scale", **asdict(size))

    @contextmanager
    def prepare() -> Iterator[Measurement]:
        with private_world({}) as folder, scale.cluster(folder, size) as agents:
            try:
                yield lambda: scale.measure(report, agents, folder, size)
            finally:
                disconnect()

    return _report(arguments, report, prepare())


def compare(arguments: argparse.Namespace) -> int:
    """Run `roost bench compare`. The exit code is 0 whatever has changed."""
    before, after = comparison.read(arguments.before), comparison.read(arguments.after)
    if before["benchmark"] != after["benchmark"]:
        raise ConfigError(
            f"{arguments.before} is a result of {before['benchmark']}, {arguments.after} one of {after['benchmark']}: "
            "compare two results of the same kind."
        )
    comparison.show(before, after, comparison.compare(before, after))
    return 0


def _read_rounds(arguments: argparse.Namespace) -> int:
    return arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)


def _run(arguments: argparse.Namespace, measure: Measure, **settings: Any) -> int:
    """Measure in a world of its own, as `_report` does."""
    config = {"backend": arguments.backend, **request_config(arguments)}
    sides = read_sides(config, arguments.baseline or ["plain"], scheduler_options(arguments))
    report = Report(
        arguments.command, backend=arguments.backend, sides=[side.name for side in sides], **settings
    )

    @contextmanager
    def prepare() -> Iterator[Measurement]:
        with (
            world(sides) as folder,
            embedded(arguments.backend, folder) if arguments.embedded else nullcontext(),
        ):
            yield lambda: _measure(report, sides, measure)

    return _report(arguments, report, prepare())


def _report(
    arguments: argparse.Namespace, report: Report, prepared: AbstractContextManager[Measurement]
) -> int:
    """Measure, then print and write the results. Ctrl-C ends the measurement, not the results."""
    _check_files(arguments)
    is_complete = True
    with prepared as measurement:
        before = machine.measure()
        try:
            asyncio.run(_until_interrupted(measurement))
        except (KeyboardInterrupt, asyncio.CancelledError):
            is_complete = False
            report.notes.append(
                "Interrupted: these are the results until then." if report.samples else "Interrupted."
            )
        after = machine.measure()
    report.conditions = [before.to_dict(), after.to_dict()]
    report.notes += machine.find_doubts(before, after)
    if not report.samples:
        print(f"roost: there is no result. {' '.join(report.notes)}".rstrip(), file=sys.stderr)
        return 1 if is_complete else _INTERRUPTED
    status = report.finish(arguments)
    return status if is_complete else _INTERRUPTED


async def _until_interrupted(measurement: Measurement) -> None:
    """Measure. SIGINT and SIGTERM cancel this once; everything that was started is then stopped."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for signum in signals:
        loop.add_signal_handler(signum, task.cancel)
    try:
        await measurement()
    finally:
        for signum in signals:
            loop.remove_signal_handler(signum)


async def _measure(report: Report, sides: Sequence[Side], measure: Measure) -> None:
    for side in sides:
        if side.is_roost and not await side.warm_up():
            report.notes.append(f"No kernel of {side.name} was forked: its kernels start from their command.")
    await measure(report, sides)


def _check_files(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` now if the results cannot be written later."""
    if arguments.plot is not None and arguments.plot.suffix not in _PICTURES:
        raise ConfigError(
            f"--plot {arguments.plot} is not possible: the name must end in {', '.join(_PICTURES)}."
        )
    for name in filter(None, (arguments.json, arguments.plot)):
        is_new = not name.exists()
        try:
            with name.open("ab"):
                pass
            if is_new:
                name.unlink()
        except OSError as problem:
            raise ConfigError(f"{name} cannot be written: {problem.strerror}.") from None
