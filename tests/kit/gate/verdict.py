"""Red or green: what the parts have shown, and the table at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from .known import MOST, Entry, write_lines
from .results import Failure, PartResult

MOST_FLAKY, MOST_UNSTABLE, MOST_RACES = 3, 1, 1
"""At most how many flaky tests of each kind a run may have that `tests/flaky.toml` does not list."""


def find_reasons(
    results: Sequence[PartResult],
    failures: Sequence[Failure],
    entries: Sequence[Entry],
    is_edited: Callable[[str], bool],
    now: datetime,
) -> list[str]:
    """Return why the run is red; empty if it is green. `failures` have their labels."""
    known = {entry.test for entry in entries if entry.counts(now)}
    new = [each for each in failures if each.label != "FAILED" and each.test not in known]
    reasons = [f"{each.part} failed, and no test says why" for each in results if each.is_broken]
    reasons += [
        f"{each.test} failed ({each.never or 'also alone'})" for each in failures if each.label == "FAILED"
    ]
    reasons += [f"{test} was skipped without a reason" for each in results for test in each.reasonless]
    reasons += [
        f"{each.test} is flaky, and the change has written or edited it"
        for each in failures
        if each.label != "FAILED" and is_edited(each.test)
    ]
    for count, most, what in (
        (len([each for each in new if each.label == "FLAKY"]), MOST_FLAKY, "flaky tests"),
        (len([each for each in new if each.label == "UNSTABLE"]), MOST_UNSTABLE, "unstable tests"),
        (len([each for each in new if each.is_race]), MOST_RACES, "races"),
        (len(entries), MOST, "tests in tests/flaky.toml"),
    ):
        if count > most:
            reasons.append(f"{count} {what}, and at most {most} may be")
    return reasons


def describe(
    results: Sequence[PartResult], failures: Sequence[Failure], reasons: Sequence[str], left_out: str
) -> str:
    """Return the table of a run: its parts, its failed tests with the races first, and the verdict."""
    lines = [f"{'part':<12}{'minutes':>8}{'tests':>8}{'failed':>8}"]
    lines += [
        f"{each.part:<12}{each.minutes:>8.1f}{each.tests:>8}{len(each.failures):>8}" for each in results
    ]
    for each in sorted(failures, key=lambda each: (each.label == "FAILED", not each.is_race)):
        lines.append(f"{each.label}{' RACE' if each.is_race else ''} {each.test}\n    {each.error}")
    if flaky := [each for each in failures if each.label != "FAILED"]:
        lines.append(f"Lines for tests/flaky.toml:\n{write_lines(flaky)}")
    lines += [f"Red: {reason}." for reason in reasons] or ["Green."]
    if left_out:
        lines[-1] += f" This machine is slow: {left_out}, whose turn it is, did not run."
    return "\n".join(lines)
