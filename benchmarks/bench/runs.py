"""A run: a measurement in private folders, which Ctrl-C ends early, and then its table and JSON file."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

from roost.launchers.daemon.open_files import raise_limit, read_limit
from roost.scheduler.errors import ConfigError

from . import machine
from .kernel import NoAnswer
from .report import Report, TooManyFailures, check_writable
from .sides import Side, world

Measure = Callable[[Report, Sequence[Side]], Awaitable[None]]
Measurement = Callable[[], Awaitable[None]]
INTERRUPTED = 130
_QUICK_ROUNDS, _ROUNDS = 3, 20
_FEWEST_FILES = 256


def read_rounds(arguments: argparse.Namespace) -> int:
    """Return the repetitions of each side that the options ask for."""
    return arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)


def measure_sides(
    arguments: argparse.Namespace,
    report: Report,
    sides: Sequence[Side],
    measure: Measure,
) -> int:
    """Warm up the sides and measure them in private folders, as `run` does. Return the exit status."""

    async def measurement() -> None:
        await warm_up(report, sides)
        await measure(report, sides)

    @contextmanager
    def prepare() -> Iterator[Measurement]:
        with world(sides):
            yield measurement

    return run(arguments, report, prepare())


async def warm_up(report: Report, sides: Sequence[Side]) -> None:
    """Start the agents and a zygote of each side of roost.

    The report notes a side that forks no kernels, and settings that it does not carry out.
    """
    for side in sides:
        if side.is_roost and not await side.warm_up() and side.config.get("fork") is not False:
            report.notes.append(f"No kernel of {side.name} was forked: its kernels start from their command.")
        if side.is_roost and side.options:
            report.notes += await _find_unmet(side)


async def _find_unmet(side: Side) -> list[str]:
    """Return a sentence for each setting of a side of roost that its agents cannot carry out."""
    warnings = [finding["what"] for finding in await side.connect().doctor() if finding["level"] == "warning"]
    return [f"{side.name}: {what}." for what in warnings]


def run(arguments: argparse.Namespace, report: Report, prepared: AbstractContextManager[Measurement]) -> int:
    """Measure, then print and write the results. Return the exit status.

    `prepared` yields the measurement. After Ctrl-C, or if too many kernels do not answer, the results so far are
    written. `arguments` has `json`. Raise `ConfigError` if that file cannot be written.
    """
    _check_file(arguments)
    check_open_files()
    ended = 0
    with _interrupted_by_signals():
        with prepared as measurement:
            before = machine.measure()
            try:
                asyncio.run(_until_interrupted(measurement, report))
            except (KeyboardInterrupt, asyncio.CancelledError):
                ended = INTERRUPTED
                report.notes.append(
                    "Interrupted: these are the results until then." if report.samples else "Interrupted."
                )
            except (NoAnswer, TooManyFailures) as problem:
                ended = 1
                report.notes.append(f"Ended early, because {problem}. These are the results until then.")
            after = machine.measure()
        if not report.samples:
            print(f"roost: there is no result. {' '.join(report.notes)}".rstrip(), file=sys.stderr)
            return ended or 1
        report.conditions = [before.to_dict(), after.to_dict()]
        report.notes += machine.find_doubts(before, after)
        status = report.finish(arguments)
        return ended or status


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let the first of `_find_signals` raise KeyboardInterrupt while the block runs, and ignore the others.

    A second Ctrl-C would leave behind what the first one makes the run remove.
    """

    def interrupt(signum: int, frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in _find_signals()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _find_signals() -> set[signal.Signals]:
    """Return the signals that end a run. `nohup` ignores SIGHUP."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    return {signum for signum in signals if signal.getsignal(signum) is not signal.SIG_IGN}


async def _until_interrupted(measurement: Measurement, report: Report) -> None:
    """Run the measurement. The first of `_find_signals` cancels it, so that it stops everything that it has started."""

    def interrupt() -> None:
        if not report.is_interrupted:
            report.is_interrupted = True
            task.cancel()

    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    before = {signum: signal.getsignal(signum) for signum in _find_signals()}
    for signum in before:
        loop.add_signal_handler(signum, interrupt)
    try:
        await measurement()
    finally:
        for signum, handler in before.items():
            loop.remove_signal_handler(signum)
            signal.signal(signum, signal.SIG_IGN if report.is_interrupted else handler)


def check_open_files() -> None:
    """Raise the limit of open files. Raise `ConfigError` if it is too low for any benchmark."""
    raise_limit()
    most = read_limit()
    if most < _FEWEST_FILES:
        raise ConfigError(
            f"A process may open only {most} files here: raise the limit to {_FEWEST_FILES} or more (ulimit -n)."
        )


def _check_file(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` now if the results cannot be written later."""
    if arguments.json is not None:
        try:
            check_writable(arguments.json)
        except argparse.ArgumentTypeError as problem:
            raise ConfigError(str(problem)) from None
