"""A line for each minute of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kit.machine.progress import Progress


class Reporter:
    """A terminal whose lines are written when they are flushed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._pending: list[str] = []

    def write_line(self, line: str) -> None:
        self._pending.append(line.strip())

    def flush(self) -> None:
        self.lines += self._pending
        self._pending = []


def test_a_line_for_each_minute() -> None:
    reporter, seconds = Reporter(), [0.0]
    progress = Progress(reporter, lambda: seconds[0])
    progress.pytest_xdist_node_collection_finished(None, ["a", "b", "c", "d"])
    for at_s in (10, 61, 90, 240):
        seconds[0] = at_s
        for when in ("setup", "call", "teardown"):
            progress.pytest_runtest_logreport(cast("pytest.TestReport", SimpleNamespace(when=when)))
    assert reporter.lines == ["1 min: 2 of 4 tests", "4 min: 4 of 4 tests"]


def test_a_run_without_workers() -> None:
    reporter, seconds = Reporter(), [0.0]
    progress = Progress(reporter, lambda: seconds[0])
    progress.pytest_collection_finish(cast("Any", SimpleNamespace(items=["a", "b"])))
    seconds[0] = 125.0
    progress.pytest_runtest_logreport(cast("pytest.TestReport", SimpleNamespace(when="teardown")))
    assert reporter.lines == ["2 min: 1 of 2 tests"]
