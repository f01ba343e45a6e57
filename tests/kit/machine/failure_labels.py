"""Labels of failed tests: FLAKY if the test passes when it runs again alone, else FAILED.

`pytest --label-failures` runs each failed test again after all others. It prints both outputs, and appends a line with
the label and the error to `build/failures.tsv`. The run of pytest stays red. `python -m kit.machine.failure_labels`
judges the lines of all parts of `.ci/run`: it forgives a few flaky tests.

Some failures are never forgiven, and these tests do not run again: a test that ended by its timeout, a crashed worker,
what a fixture finds at the end of a test that has passed (something was left), and the tests in `NEVER_FLAKY`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roost.testing.deadlines import allow_s

FORGIVEN = 3
"""At most how many flaky tests all parts of a run may have."""
AGAIN = 10
"""At most how many tests run again. If more have failed, none does: the change is at fault, and each run takes time."""
NEVER_FLAKY = ("tests/property/", "tests/packaging/")
"""The tests in these folders get the same inputs in each run, and wait for nothing."""
_LINES = 80
"""At most how many lines of an output are printed."""
_ERROR_LINES = 6
_ERROR_CHARACTERS = 400
_PLACE = re.compile(r"[\w./-]+\.py:\d+: ")
_UNFORGIVABLE = re.compile(r"^(?:E .*(?:Timeout \(>|left behind)|worker '\w+' crashed)", re.MULTILINE)
_RUN_S = 1800.0


def add_option(parser: pytest.Parser) -> None:
    about = "run failed tests again, each alone, and label them FLAKY or FAILED in build/failures.tsv"
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
        self._unforgivable: set[str] = set()
        """The ids of the failed tests that do not run again."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            sections = [report.longreprtext, *(f"--- {title}\n{text}" for title, text in report.sections)]
            # A test that fails in the middle leaves its kernel behind: that does not count.
            has_left = report.when == "teardown" and report.nodeid not in self._errors
            is_hopeless = report.nodeid.startswith(NEVER_FLAKY) or _UNFORGIVABLE.search(report.longreprtext)
            if has_left or is_hopeless:
                self._unforgivable.add(report.nodeid)
            self._outputs.setdefault(report.nodeid, "\n".join(sections))
            self._errors.setdefault(report.nodeid, _error_of(report.longreprtext))
            print(f"\nfailed: {report.nodeid}", flush=True)  # the outputs come after all tests

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
        """Run the failed tests again. All workers have ended by now."""
        labels = {}
        if exitstatus > pytest.ExitCode.TESTS_FAILED:
            labels[f"exit code {exitstatus:d} of pytest"] = "FAILED"
        if self._outputs:
            terminalreporter.section("failed tests, run again alone")
        for test, output in self._outputs.items():
            terminalreporter.flush()  # a run takes a while
            if len(self._outputs) > AGAIN or test in self._unforgivable:
                has_passed, again = False, "It does not run again."
            else:
                has_passed, again = run_alone(test, config.rootpath)
            labels[test] = "FLAKY" if has_passed else "FAILED"
            terminalreporter.write_line(f"{labels[test]} {test}", red=True)
            terminalreporter.write_line(f"first output:\n{_end_of(output)}\nalone:\n{_end_of(again)}")
        record({test: (label, self._errors.get(test, "")) for test, label in labels.items()}, config.rootpath)
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
    """Append a line for each test to `build/failures.tsv`: its label, its id and its error."""
    path = root / "build" / "failures.tsv"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{label}\t{test}\t{error}\n" for test, (label, error) in labels.items())


def judge(lines: list[str]) -> bool:
    """Return True if the lines of a whole run are forgiven: each test is flaky, and there are only a few."""
    return len(lines) <= FORGIVEN and all(line.startswith("FLAKY\t") for line in lines)


def _error_of(output: str) -> str:
    """Return the error and the place that a failed test's output shows last, in one line."""
    shown = [line for line in output.splitlines() if line.startswith("E ") or _PLACE.match(line)]
    return " ".join(" ".join(shown[-_ERROR_LINES:]).split())[-_ERROR_CHARACTERS:]


def _end_of(output: str) -> str:
    return "\n".join(output.splitlines()[-_LINES:])


if __name__ == "__main__":
    failures = Path("build/failures.tsv")
    failed = failures.read_text(encoding="utf-8").splitlines() if failures.exists() else []
    print("\n".join(failed) or "No test failed.")
    sys.exit(not judge(failed))
