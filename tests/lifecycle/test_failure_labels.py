"""A run with a flaky test and a wrong one: both get their labels, and the run stays red."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost.testing.deadlines import allow_s

TESTS = """
from pathlib import Path

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
"""
CONFTEST = """
from kit.machine import failure_labels

pytest_addoption = failure_labels.add_option
pytest_configure = failure_labels.register
"""


def test_a_flaky_test_and_a_wrong_one(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {Path(__file__).parents[1]}\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--label-failures", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=allow_s(100),
    )
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout + run.stderr
    assert "2 failed, 1 passed" in run.stdout
    labelled = run.stdout[run.stdout.index("run again alone") :]
    for text in (
        "FLAKY test_it.py::test_flaky",
        "FAILED test_it.py::test_wrong",
        "the first run",
        "1 passed in",
    ):
        assert text in labelled
    lines = (tmp_path / "roost-tests" / "failures.tsv").read_text().splitlines()
    labels = sorted(line.split("\t")[2:] for line in lines)
    assert labels == [
        ["FAILED", "test_it.py::test_wrong", "E assert False test_it.py:12: AssertionError"],
        ["FLAKY", "test_it.py::test_flaky", "E assert False test_it.py:9: AssertionError"],
    ]
