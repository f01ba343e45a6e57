"""The benchmarks import little: their page can be written anywhere, and `roost bench` runs without pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from roost.testing.deadlines import allow_s

ROOT = Path(__file__).parents[2]


def test_no_script_imports_a_cluster_manager_for_its_tables() -> None:
    code = "import sys, write_page; write_page.read_tables(); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, text=True, timeout=allow_s(60), check=True
    )
    loaded = set(done.stdout.split())
    assert "on_ray" in loaded
    assert not {"ray", "dask", "distributed", "kubernetes", "torch", "matplotlib"} & loaded


def test_the_command_needs_no_pytest() -> None:
    code = "import sys, roost.bench.command; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=allow_s(60), check=True)
    assert not {"pytest", "_pytest", "pytest_asyncio"} & set(done.stdout.split())
