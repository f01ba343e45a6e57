"""Run the gate: `python -m kit.gate`, in the root of a checkout with its `.venv`. It exits with 1 if it is red."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from .known import is_edited, read_entries
from .parts import ALWAYS, find_base, find_own, find_turn, list_changed
from .results import Failure, Label, PartResult, read_junit
from .verdict import describe, find_reasons

RESULTS = Path("build/results")
"""Where each part's pytest writes its junit file."""
MOST_FAILED = 10
"""If more tests of a part have failed, none of them runs again: the change is at fault."""
_TURN_UNTIL_S = 3600.0
"""The part whose turn it is does not begin later than this."""
_CALM_LOAD, _CALM_S = 1.0, 60.0
"""A failed test runs again once the load is this low, or after this time."""
_ALONE_S = 1800.0


def main() -> int:
    began = time.monotonic()
    os.environ.pop("PYTHONPATH", None)  # of this process alone: kernels would have it
    shutil.rmtree(RESULTS, ignore_errors=True)
    base, turn, entries = find_base(), find_turn(), read_entries()
    own = find_own(list_changed(base))
    print(f"gate: base {base[:8]}, own parts {', '.join(own) or 'none'}, turn {turn}", flush=True)
    results = [run_part(part) for part in (*ALWAYS, *own)]
    left_out = ""
    if turn not in own:
        if time.monotonic() - began > _TURN_UNTIL_S:
            left_out = turn
        else:
            results.append(run_part(turn))
    failures = [each for result in results for each in label_failures(result.failures)]
    edited = partial(is_edited, base=base)
    reasons = find_reasons(results, failures, entries, edited, datetime.now(timezone.utc))
    print(describe(results, failures, reasons, left_out))
    return bool(reasons)


def run_part(part: str) -> PartResult:
    """Run a target of the Makefile, and read the junit files that it has written.

    A file `PART.broken` says that something has failed beside tests.
    """
    began = time.monotonic()
    has_failed = subprocess.run(["make", part], check=False).returncode != 0
    minutes = (time.monotonic() - began) / 60
    is_broken = any(RESULTS.glob(f"{part}.broken"))
    read = []
    for path in sorted(RESULTS.glob(f"{part}*.xml")):
        try:
            read.append(read_junit(path))
        except ElementTree.ParseError:  # pytest was killed
            is_broken = True
    failures = tuple(failure for _, found, _ in read for failure in found)
    return PartResult(
        part=part,
        minutes=minutes,
        tests=sum(tests for tests, _, _ in read),
        failures=failures,
        reasonless=tuple(test for _, _, found in read for test in found),
        is_broken=is_broken or (has_failed and not failures),
    )


def label_failures(failures: Sequence[Failure]) -> list[Failure]:
    """Run the failed tests of a part again, each alone and twice, and label them by how often they pass."""
    if len(failures) > MOST_FAILED:
        return [replace(each, never=each.never or f"one of {len(failures)} in its part") for each in failures]
    labels: dict[int, Label] = {0: "FAILED", 1: "UNSTABLE", 2: "FLAKY"}
    return [each if each.never else replace(each, label=labels[count_passes(each.test)]) for each in failures]


def count_passes(test: str) -> int:
    """Return how often a test passes of two runs, each in a process of its own on a calm machine."""
    passes = 0
    for _ in range(2):
        give_up_at = time.monotonic() + _CALM_S
        while os.getloadavg()[0] > _CALM_LOAD and time.monotonic() < give_up_at:
            time.sleep(1)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", test]
        print(f"again, alone: {test}", flush=True)
        with subprocess.Popen(command) as run:
            try:
                passes += run.wait(_ALONE_S) == 0
            except subprocess.TimeoutExpired:
                run.terminate()  # pytest ends what the test has started
    return passes


if __name__ == "__main__":
    sys.exit(main())
