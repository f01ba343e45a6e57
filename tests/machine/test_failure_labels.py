"""Runs with failed tests: each test gets its label. Some failures are never forgiven, and do not run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from roost.testing.deadlines import allow_s

TESTS = """
from pathlib import Path
import pytest

def test_flaky():
    mark = Path(__file__).with_name("mark")
    is_second = mark.exists()
    mark.touch()
    print("the second run" if is_second else "the first run")
    assert is_second

def test_wrong():
    assert False

def test_right():
    pass

@pytest.fixture
def emptied():
    left = []
    yield left
    assert not left, "something is left"

def test_halfway(emptied):
    mark = Path(__file__).with_name("halfway")
    if not mark.exists():
        mark.touch()
        emptied.append("a kernel")
        raise AssertionError("the first run")
"""
UNFORGIVABLE = """
import os, time
from pathlib import Path
import pytest

def is_second():
    name = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0]
    mark = Path(__file__).with_name(name)
    had_mark = mark.exists()
    mark.touch()
    return had_mark

@pytest.fixture
def strict():
    yield
    assert is_second(), "something is left"

@pytest.mark.timeout(0.5)
def test_hang():
    while not is_second():
        time.sleep(1)

def test_crash():
    if not is_second():
        os._exit(1)

def test_fixture(strict):
    pass

def test_folder():
    assert is_second(), "processes left behind: 1"
"""
"""Tests that would pass when they run again."""
CONFTEST = """
from kit.machine import failure_labels

pytest_addoption = failure_labels.add_option
pytest_configure = failure_labels.register
"""


def run(folder: Path, tests: str) -> tuple[str, list[list[str]]]:
    """Run tests with labels. Return the output, and the fields of each line of the file of failures."""
    (folder / "test_it.py").write_text(tests)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {Path(__file__).parents[1]}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--label-failures", "test_it.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=allow_s(100),
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    lines = (folder / "build" / "failures.tsv").read_text().splitlines()
    return done.stdout, sorted(line.split("\t") for line in lines)


def test_a_flaky_test_and_a_wrong_one(tmp_path: Path) -> None:
    output, labels = run(tmp_path, TESTS)
    assert "3 failed, 1 passed, 1 error" in output
    labelled = output[output.index("run again alone") :]
    for text in (
        "FLAKY test_it.py::test_flaky",
        "FAILED test_it.py::test_wrong",
        "the first run",
        "1 passed in",
    ):
        assert text in labelled
    assert labels == [
        ["FAILED", "test_it.py::test_wrong", "E assert False test_it.py:13: AssertionError"],
        ["FLAKY", "test_it.py::test_flaky", "E assert False test_it.py:10: AssertionError"],
        [
            "FLAKY",
            "test_it.py::test_halfway",
            "E AssertionError: the first run test_it.py:29: AssertionError",
        ],
    ]


def test_hangs_crashes_and_leftovers_are_never_flaky(tmp_path: Path) -> None:
    _, labels = run(tmp_path, UNFORGIVABLE)
    tests = ("test_crash", "test_fixture", "test_folder", "test_hang")
    assert [label[:2] for label in labels] == [["FAILED", f"test_it.py::{test}"] for test in tests]


def test_more_than_ten_failed_tests_do_not_run_again(tmp_path: Path) -> None:
    late = "def test_{0}():\n    mark = Path(__file__).with_name('{0}')\n    assert mark.exists() or mark.touch()\n"
    _, labels = run(
        tmp_path, "from pathlib import Path\n" + "".join(late.format(number) for number in range(11))
    )
    assert [label[0] for label in labels] == ["FAILED"] * 11
