"""Hundreds of kernels, one after the other, use no more and more resources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost.testing.deadlines import allow_s

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"
CYCLES = 500


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nothing_grows_over_hundreds_of_kernels() -> None:
    """The script prints a table of descriptors, threads, memory and files, and fails if one grows."""
    env = {name: value for name, value in os.environ.items() if name != "ROOST_RUNTIME_DIR"}
    command = [sys.executable, str(SOAK), "--cycles", os.environ.get("ROOST_SOAK_CYCLES", str(CYCLES))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=allow_s(1700))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
