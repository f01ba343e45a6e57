"""Labels of failed tests: FLAKY if the test passes when it runs again alone, else FAILED. The run stays red.

`pytest --label-failures` runs each failed test again after all others. It prints both outputs, and appends a line with
the error to `~/.cache/roost-tests/failures.tsv`. `python -m kit.machine.failure_labels` prints the last lines of that
file, for who sees the end of a long output alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from roost.testing.deadlines import allow_s

AGAIN = 10
"""At most how many tests run again. If more have failed, the change is at fault, and each run takes time."""
KEPT = 500
SHOWN = 15
_LINES = 80
"""At most how many lines of an output are printed."""
_ERROR_LINES = 6
_ERROR_CHARACTERS = 400
_PLACE = re.compile(r"[\w./-]+\.py:\d+: ")
_RUN_S = 1800.0


def history() -> Path:
    """Return the file with a line for each failed test: time, commit, label, the test's id and its first error."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roost-tests" / "failures.tsv"


def add_option(parser: pytest.Parser) -> None:
    about = "run failed tests again, each alone, and label them FLAKY or FAILED; the run stays red"
    parser.addoption("--label-failures", action="store_true", help=about)


def register(config: pytest.Config) -> None:
    """Register the plugin if the option is given. A run of a test alone has no such option."""
    if config.getoption("--label-failures") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailureLabels())


class FailureLabels:
    """A plugin of pytest that labels failed tests. The controller of pytest-xdist has it, no worker."""

    def __init__(self) -> None:
        self._outputs: dict[str, str] = {}
        """The first output of each failed test, by id."""
        self._errors: dict[str, str] = {}
        """The error that this output ends with, by id."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            sections = [report.longreprtext, *(f"--- {title}\n{text}" for title, text in report.sections)]
            self._outputs.setdefault(report.nodeid, "\n".join(sections))
            self._errors.setdefault(report.nodeid, _error_of(report.longreprtext))
            print(f"\nfailed: {report.nodeid}", flush=True)  # the outputs come after all tests

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        """Run the failed tests again. All workers have ended by now."""
        if not self._outputs:
            return
        terminalreporter.section("failed tests, run again alone")
        labels = {}
        for test, output in self._outputs.items():
            if len(labels) == AGAIN:
                terminalreporter.write_line(f"{len(self._outputs) - AGAIN} more are not run again.")
                break
            terminalreporter.flush()  # a run takes a while
            has_passed, again = run_alone(test, config.rootpath)
            labels[test] = "FLAKY" if has_passed else "FAILED"
            terminalreporter.write_line(f"{labels[test]} {test}", red=True)
            terminalreporter.write_line(f"first output:\n{_end_of(output)}\nalone:\n{_end_of(again)}")
        record({test: (label, self._errors[test]) for test, label in labels.items()}, config.rootpath)
        for test, label in labels.items():
            terminalreporter.write_line(f"{label} {test}", red=True)


def run_alone(test: str, root: Path) -> tuple[bool, str]:
    """Run one test in a process of its own. Return whether it passes, and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", test]
    run = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = run.communicate(timeout=allow_s(_RUN_S))
    except subprocess.TimeoutExpired:
        run.terminate()  # pytest ends what the test has started
        output, _ = run.communicate()
    return run.returncode == 0, output


def record(labels: dict[str, tuple[str, str]], root: Path) -> None:
    """Append a line for each test to the history, from its label and error. Keep the history's last lines."""
    git = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "-"
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    lines = [f"{now}\t{commit}\t{label}\t{test}\t{error}" for test, (label, error) in labels.items()]
    path = history()
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.write_text("".join(f"{line}\n" for line in [*before, *lines][-KEPT:]), encoding="utf-8")


def _error_of(output: str) -> str:
    """Return the error and the place that a failed test's output shows last, in one line."""
    shown = [line for line in output.splitlines() if line.startswith("E ") or _PLACE.match(line)]
    return " ".join(" ".join(shown[-_ERROR_LINES:]).split())[-_ERROR_CHARACTERS:]


def _end_of(output: str) -> str:
    return "\n".join(output.splitlines()[-_LINES:])


if __name__ == "__main__":
    if history().exists():
        print(f"The last failed tests, from {history()}:")
        print("\n".join(history().read_text(encoding="utf-8").splitlines()[-SHOWN:]))
