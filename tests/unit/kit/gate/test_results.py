"""What pytest's junit file says of failed tests: ids that pytest takes again, and what is never forgiven."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kit.gate.results import read_junit
from roost.testing.deadlines import allow_s

TESTS = """
import os, time
import pytest
from suite import Suite

@pytest.fixture
def strict():
    yield
    assert False, "a lease stayed"

class TestIt(Suite):
    @pytest.mark.parametrize("n", [1])
    def test_wrong(self, n):
        assert n == 2

def test_halfway(strict):
    raise AssertionError("no kernel")

def test_left():
    raise AssertionError("processes left behind: 7")

def test_teardown(strict):
    pass

@pytest.mark.timeout(0.5)
def test_hang():
    time.sleep(60)

def test_crash():
    os._exit(1)

@pytest.mark.skip
def test_skipped():
    pass

def test_skips():
    pytest.skip()
"""
SUITE = """
class Suite:
    def test_inherited(self):
        assert False
"""


def test_failures_have_ids_and_reasons(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    options = ["-q", "-n", "1", "--junitxml", "it.xml", "-o", "junit_family=xunit1", "test_it.py"]
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, check=False, timeout=allow_s(60))
    _, failures, reasonless = read_junit(tmp_path / "it.xml", tmp_path)
    assert {each.test: each.never for each in failures} == {
        "test_it.py::TestIt::test_inherited": "",
        "test_it.py::TestIt::test_wrong[1]": "",
        "test_it.py::test_halfway": "",
        "test_it.py::test_left": "something was left",
        "test_it.py::test_teardown": "something was left",
        "test_it.py::test_hang": "it hung",
        "test_it.py::test_crash": "a worker crashed",
    }
    (halfway,) = [each for each in failures if each.test.endswith("halfway")]
    assert "no kernel" in halfway.error
    assert sorted(reasonless) == ["test_it.py::test_skipped", "test_it.py::test_skips"]
