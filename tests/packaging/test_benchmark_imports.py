"""The benchmarks' scripts import little, so that the page of benchmarks can be written anywhere."""

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
