"""The scripts in `benchmarks/`: each one loads, and those of cluster managers read a report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from roost.testing.deadlines import allow_s

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MAKEFILE = BENCHMARKS.parent / "Makefile"
DEADLINE_S = 60


def run(script: str, *options: str) -> str:
    """Run a script and return its output. It must succeed."""
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=allow_s(DEADLINE_S)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.backends("local", why="no script needs a cluster for its help")
def test_each_script_loads() -> None:
    (names,) = re.findall(r"^BENCHMARKS := ((?:.*\\\n)*.*)$", MAKEFILE.read_text(), re.MULTILINE)
    scripts = names.replace("\\", "").split()
    assert len(scripts) > 10
    for script in scripts:
        assert run(f"{script}.py", "--help").startswith("usage: ")


@pytest.mark.backends("ray", "dask", why="the other cluster managers' reports are read in their tests")
def test_a_report_on_a_thousand_nodes_is_read(backend: str, backend_runtime_dir: Path) -> None:
    took_ms = json.loads(run(f"on_{backend}.py", "--read", "1").splitlines()[-1])
    assert "build_node" in took_ms
    assert all(len(values) == 1 and values[0] > 0 for values in took_ms.values())
