"""The report of a script: that of `roost bench`, with claims and a picture. Also the scripts' options and rounds."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from plots import draw
from rich.console import Console
from rich.markup import escape

from roost.bench import interval, report
from roost.bench.interval import Interval
from roost.bench.report import check_writable, take_turns

SKIPPED = 77
"""The exit status of a script that needs something which is missing here."""
_PICTURES = (".png", ".svg", ".pdf")
MOST_ROUNDS = 1_000
"""No more rounds are recommended."""

Case = Callable[[], Awaitable[Mapping[str, float]]]
"""One repetition of one side of a comparison. It returns stage → value, in the unit given to `interleave`."""
Verdict = Literal["kept", "missed", "open"]
"""What a measurement says about a bound. `open`: the interval has values on both sides of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A claimed bound of a measured value. `value` was measured in `rounds`, and `text` names it.

    Without an interval, the value alone decides: a sum, or the median of a few rounds.
    """

    text: str
    value: float
    at_most: float | None
    at_least: float | None
    interval: Interval | None = None
    rounds: int = 0

    @property
    def verdict(self) -> Verdict:
        return judge(self.value, self.interval, at_most=self.at_most, at_least=self.at_least)

    def describe(self, unit: str) -> str:
        """Return the value, its interval and what was expected; for an open bound, also what would decide it."""
        bound = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        spread = f" [{self.interval.low:.3f}, {self.interval.high:.3f}]" if self.interval is not None else ""
        text = f"{self.value:.3f}{spread} {unit}".rstrip() + f" (expected {bound})"
        if self.interval is None or self.verdict != "open":
            return text
        limit = self.at_most if self.at_most is not None else self.at_least
        assert limit is not None
        more = count_missing_rounds(self.value, self.interval, limit, self.rounds)
        if more >= MOST_ROUNDS:
            return f"{text}; too close for {MOST_ROUNDS:,} more rounds to tell"
        return f"{text}; about {more} more {'round' if more == 1 else 'rounds'} would tell"


class Report(report.Report):
    """A report with claims.

    >>> report = Report("start")
    >>> report.claim("start", 0.15, at_most=0.2)
    >>> report.claims[0].verdict
    'kept'
    """

    def __init__(self, name: str, **settings: object) -> None:
        super().__init__(name, **settings)
        self.claims: list[Bound] = []

    def claim(
        self,
        text: str,
        value: float | None = None,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a claim: `value`, else the ratio (of medians) or the figure named `text`, is within these bounds."""
        found, rounds = None, 0
        if value is None and text in self.ratios:
            ratio = self.ratios[text]
            value, found, rounds = ratio.of_medians, ratio.interval, ratio.n
        elif value is None:
            samples = self.samples[text]
            value, found, rounds = self.figure(text).median, interval.of_median(samples), len(samples)
        self.claims.append(
            Bound(text=text, value=value, at_most=at_most, at_least=at_least, interval=found, rounds=rounds)
        )

    def to_dict(self) -> dict[str, object]:
        """Return all measurements, with the claims and what the measurements say about them."""
        return {
            **super().to_dict(),
            "claims": [{**asdict(claim), "verdict": claim.verdict} for claim in self.claims],
        }

    def finish(self, arguments: argparse.Namespace) -> int:
        """Do the same as `report.Report.finish`. The status is also 1 if `--check` finds a missed bound."""
        missed = arguments.check and any(claim.verdict == "missed" for claim in self.claims)
        return super().finish(arguments) or int(missed)

    def list_files(self, arguments: argparse.Namespace) -> list[tuple[Path | None, Callable[[Path], None]]]:
        return [*super().list_files(arguments), (arguments.plot, self.plot)]

    def plot(self, path: Path) -> None:
        """Draw all samples. Print a note if matplotlib is missing."""
        try:
            draw(self.to_dict(), path)
        except ImportError:
            print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)

    def show(self, console: Console) -> None:
        super().show(console)
        for claim in self.claims:
            colour = {"kept": "green", "missed": "red", "open": "yellow"}[claim.verdict]
            said = escape(f"{claim.text}: {claim.describe(self.units.get(claim.text, ''))}")
            console.print(f"[{colour}]{claim.verdict}[/]  {said}", highlight=False)


def judge(
    value: float, interval: Interval | None, *, at_most: float | None, at_least: float | None
) -> Verdict:
    """Compare a value with its bounds. Without an interval, the value alone decides."""
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    if (at_most is None or high <= at_most) and (at_least is None or low >= at_least):
        return "kept"
    if (at_most is not None and low > at_most) or (at_least is not None and high < at_least):
        return "missed"
    return "open"


def count_missing_rounds(value: float, interval: Interval, bound: float, rounds: int) -> int:
    """Return about how many more rounds an open bound needs; `MOST_ROUNDS` if it needs more than that.

    The interval's width falls with the square root of the rounds.
    """
    distance = abs(value - bound)
    width = max(interval.high - value, value - interval.low)
    if distance * math.sqrt((rounds + MOST_ROUNDS) / rounds) <= width:
        return MOST_ROUNDS
    return max(1, math.ceil(rounds * (width / distance) ** 2) - rounds)


async def interleave(
    report: Report, cases: Mapping[str, Case], *, rounds: int, warm_up: int = 1, unit: str = "ms"
) -> None:
    """Run every case once per round. The order rotates, so that no case always runs at a quieter moment.

    Samples are named `<stage>/<case>`. The samples of the first `warm_up` rounds are dropped.
    """
    for name, is_warm in take_turns(report.name, list(cases), rounds=rounds, warm_up=warm_up):
        values = await cases[name]()
        if is_warm:
            for stage, value in values.items():
                report.add(f"{stage}/{name}", value, unit)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks. Scripts add their own options."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="few repetitions, to test the benchmark; do not quote the figures",
    )
    options.add_argument(
        "--json", type=check_writable, metavar="FILE", help="write the machine, versions, figures and ratios"
    )
    options.add_argument(
        "--plot", type=check_picture, metavar="FILE", help="write a picture (PNG, SVG or PDF)"
    )
    options.add_argument("--check", action="store_true", help="exit with 1 if a claim does not hold")
    return options


def check_picture(file: str) -> Path:
    """Return the path of a picture. Raises `ArgumentTypeError` if it cannot be written, or if its name says no kind."""
    if not file.endswith(_PICTURES):
        raise argparse.ArgumentTypeError(f"{file}: the name must end in {', '.join(_PICTURES)}.")
    return check_writable(file)
