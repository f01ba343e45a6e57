"""The report of a benchmark: figures and ratios with their spread, as a table and JSON.

A benchmark creates a `Report`, fills it through `Report.add`, and ends with `report.finish(arguments)`.
A figure is the median with its extremes and n; a ratio also has an interval. The JSON file also has the samples.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from . import interval
from .interval import Interval

PACKAGES = (
    "roost",
    "jupyter_client",
    "jupyter_server",
    "ipykernel",
    "ipython",
    "torch",
    "jupyterlab",
    "pyzmq",
    "tornado",
    "numpy",
    "psutil",
    "ray",
    "distributed",
    "gateway_provisioners",
)

_MOST_FAILURES = 20
"""A run ends with an error if more kernels of a side fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured quantity."""

    median: float
    min: float
    max: float
    n: int
    unit: str

    @classmethod
    def of(cls, samples: Sequence[float], unit: str) -> Figure:
        """Return the figure of these samples. There must be at least one sample."""
        return cls(
            median=statistics.median(samples), min=min(samples), max=max(samples), n=len(samples), unit=unit
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A comparison of two figures. `median`, `min`, `max` and `n` are over pairs of samples from the same round.

    `interval` is that of `of_medians`; None if the rounds are too few.
    """

    numerator: str
    denominator: str
    of_medians: float
    interval: Interval | None
    median: float
    min: float
    max: float
    n: int
    pairing: str


class TooManyFailures(RuntimeError):
    """Too many kernels of a side have failed: its figures would be worth nothing."""


class Report:
    """The results of a benchmark: samples by name, in order, with the ratios of them.

    >>> report = Report("start")
    >>> for plain, roost in [(200.0, 30.0), (190.0, 38.0), (210.0, 31.5)]:
    ...     report.add("start/plain", plain, "ms")
    ...     report.add("start/roost", roost, "ms")
    >>> ratio = report.ratio("start", "start/roost", "start/plain")
    >>> round(ratio.median, 3), round(ratio.of_medians, 4), ratio.n
    (0.15, 0.1575, 3)
    >>> ratio.interval is None  # three rounds are too few
    True
    """

    def __init__(self, name: str, **settings: object) -> None:
        self.name = name
        self.settings = settings
        self.samples: dict[str, list[float]] = {}
        self.units: dict[str, str] = {}
        self.ratios: dict[str, Ratio] = {}
        self.notes: list[str] = []
        self.failures: dict[str, int] = {}
        """The number of kernels that did not answer, by side."""
        self.capacity: dict[str, dict[str, object]] = {}
        """The number of kernels that each node holds, and the reason for no more, by node."""
        self.series: dict[str, list[float]] = {}
        """Samples in the order of their kernels, for a picture."""
        self.conditions: list[Mapping[str, float]] = []
        """The `machine.Condition` of the machine before and after the run, as dictionaries."""
        self.started = datetime.now(timezone.utc)
        self.load_before = os.getloadavg()[0]
        self.shown: Callable[[str], bool] = lambda name: True
        """Whether `show` prints the figure of this name. The file of `--json` has all."""
        self.is_interrupted = False
        """True from the moment at which the run was to end."""

    def add(self, name: str, value: float, unit: str) -> None:
        """Add a sample of `name`. Raise `ValueError` if its unit differs from that of earlier samples.

        Raise `CancelledError` if the run goes on although it was interrupted: on Python <= 3.11, `asyncio.wait_for` may
        lose the cancellation.
        """
        if self.is_interrupted:
            raise asyncio.CancelledError
        if self.units.setdefault(name, unit) != unit:
            raise ValueError(f"{name} is measured in {self.units[name]}, not in {unit}")
        self.samples.setdefault(name, []).append(value)

    def figure(self, name: str) -> Figure:
        return Figure.of(self.samples[name], self.units[name])

    def ratio(self, name: str, numerator: str, denominator: str) -> Ratio:
        """Compare two figures by pairs of samples from the same round; `ValueError` if their counts differ."""
        pairs = zip(self.samples[numerator], self.samples[denominator], strict=True)
        ratios = Figure.of([above / below for above, below in pairs], "")
        self.ratios[name] = Ratio(
            numerator=numerator,
            denominator=denominator,
            of_medians=self.figure(numerator).median / self.figure(denominator).median,
            interval=interval.of_ratio(self.samples[numerator], self.samples[denominator]),
            median=ratios.median,
            min=ratios.min,
            max=ratios.max,
            n=ratios.n,
            pairing="by round",
        )
        return self.ratios[name]

    def compare(self, stage: str, sides: Sequence[str]) -> None:
        """Add the ratio of the first side to each other side, if both have equally many samples of the stage."""
        first, *others = sides
        for other in others:
            numerator, denominator = f"{stage}/{first}", f"{stage}/{other}"
            if len(self.samples.get(numerator, ())) == len(self.samples.get(denominator, ())) > 0:
                self.ratio(f"{stage}: {first} ÷ {other}", numerator, denominator)

    def count_failure(self, side: str, what: str) -> None:
        """Count a failed kernel of a side. Raise `TooManyFailures` if too many of that side have failed."""
        self.failures[side] = self.failures.get(side, 0) + 1
        if self.failures[side] > _MOST_FAILURES:
            raise TooManyFailures(f"{self.failures[side]} kernels of {side} failed; the last one: {what}")

    def to_dict(self) -> dict[str, object]:
        """Return all measurements, with the machine and versions that a reader needs to repeat them."""
        return {
            "benchmark": self.name,
            "at": self.started.isoformat(timespec="seconds"),
            "settings": self.settings,
            "machine": {**machine(), "load_1min": [round(self.load_before, 2), round(os.getloadavg()[0], 2)]},
            "versions": versions(),
            "figures": {name: asdict(self.figure(name)) for name in self.samples},
            "ratios": {name: asdict(ratio) for name, ratio in self.ratios.items()},
            "failures": self.failures,
            "capacity": self.capacity,
            "series": self.series,
            "conditions": self.conditions,
            "notes": self.notes,
            "samples": self.samples,
        }

    def finish(self, arguments: argparse.Namespace) -> int:
        """Write the files, print the report, and return the exit status.

        It is 1 if a file cannot be written any more. The report is printed nevertheless.
        """
        problems = []
        for file, write in self.list_files(arguments):
            try:
                if file:
                    write(file)
            except OSError as problem:
                problems.append(f"roost: {file} cannot be written: {problem.strerror}.")
        try:
            self.show(Console())
        except BrokenPipeError:
            raise
        except OSError as problem:  # the terminal has gone, or the disk is full
            problems.append(f"roost: the results cannot be printed: {problem.strerror}.")
        if problems:
            with contextlib.suppress(OSError):
                print(*problems, sep="\n", file=sys.stderr)
            return 1
        return 0

    def list_files(self, arguments: argparse.Namespace) -> list[tuple[Path | None, Callable[[Path], None]]]:
        """Return the files that the options name, if any, and the functions that write them."""
        return [(arguments.json, self._write_json)]

    def _write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def show(self, console: Console) -> None:
        where = describe_machine(machine(), platform.python_version())
        console.print(f"{self.name} · {where}", highlight=False)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)
        table = Table()
        table.add_column("figure")
        for column in ("median", "min", "max", "n"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("unit")
        for name in filter(self.shown, self.samples):
            figure = self.figure(name)
            spread = (show_number(value) for value in (figure.median, figure.min, figure.max))
            table.add_row(name, *spread, str(figure.n), figure.unit)
        console.print(table)
        if self.ratios:
            level = f"{interval.LEVEL:.0%} interval"
            table = Table("ratio", "of medians", level, "median of pairs", "min", "max", "n")
            for name, ratio in self.ratios.items():
                found = ratio.interval
                spread = "–" if found is None else f"{found.low:.3f}–{found.high:.3f}"
                values = (f"{value:.3f}" for value in (ratio.median, ratio.min, ratio.max))
                table.add_row(name, f"{ratio.of_medians:.3f}", spread, *values, str(ratio.n))
            console.print(table)
        for side, count in self.failures.items():
            console.print(f"Kernels of {side} that did not answer: {count}.", highlight=False)


async def show_time(description: str, jobs: Iterable[Awaitable[Any]], for_s: float) -> None:
    """Run jobs at the same time that take about `for_s`, and show a bar with the time meanwhile.

    If the caller is cancelled, the jobs are cancelled, and this waits until they have ended.
    """
    began = time.monotonic()
    work = asyncio.gather(*jobs)
    try:
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(description, total=for_s)
            while not work.done():
                progress.update(bar, completed=min(for_s, time.monotonic() - began))
                await asyncio.wait([work], timeout=0.5)
    except asyncio.CancelledError:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        raise
    await work


def take_turns(
    description: str, names: Sequence[str], *, rounds: int, warm_up: int = 1
) -> Iterator[tuple[str, bool]]:
    """Yield each name once per round, with True after the warm-up. The order rotates."""
    for number in track(range(warm_up + rounds), description=description, console=Console(stderr=True)):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            yield name, number >= warm_up


def check_writable(file: str | Path) -> Path:
    """Return the file's path. Raises `ArgumentTypeError` now if the results cannot be written there later."""
    path = Path(file)
    is_new = not path.exists()
    try:
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as problem:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {problem.strerror}.") from None
    return path


def show_number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


def describe_machine(machine: Mapping[str, Any], python: str) -> str:
    """Return one line about the machine (`report.machine`) and the version of Python."""
    system = f"{machine['system']} {machine['kernel']}"
    return f"{machine['cpu']}, {machine['cores']} cores, {system}, Python {python}"


def machine() -> dict[str, object]:
    """Describe the machine of the measurements."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of each installed package that takes part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()
