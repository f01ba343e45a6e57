"""A line for each minute of a run of pytest: how many tests are done, and of how many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

_MINUTE_S = 60.0


class Progress:
    """A plugin of pytest that prints `4 min: 1200 of 4700 tests`. The controller of pytest-xdist has it, no worker."""

    def __init__(self, reporter: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporter = reporter
        self._clock = clock
        self._began = self._printed_at = clock()
        self._done, self._of = 0, 0

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        self._of = len(ids)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._of = self._of or len(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        self._done += 1
        if self._clock() - self._printed_at >= _MINUTE_S:
            self._printed_at = self._clock()
            minutes = (self._printed_at - self._began) / 60
            self._reporter.write_line(f"\n{minutes:.0f} min: {self._done} of {self._of} tests")
            self._reporter.flush()  # a file or a pipe would get the line later


def hide_start_of_workers(reporter: Any) -> None:
    """Keep `bringing up nodes...` from the output. pytest-xdist prints it twice if the output is no terminal."""
    if reporter is not None:
        reporter.ensure_show_status = lambda: None
