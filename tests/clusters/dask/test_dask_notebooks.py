"""Dask inside the kernel of a notebook that only names a kernelspec."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kit import ROOT
from kit.jupyter.notebook_runs import run_papermill
from roost.testing.deadlines import allow_s

EXAMPLE = ROOT / "docs" / "examples" / "dask_map.ipynb"

DASK_WITHIN = """
import os
from distributed import Client, get_worker

with Client() as client:
    squares = client.gather(client.map(lambda x: x * x, range(100)))
    print(sum(squares), sum(client.nthreads().values()), client.scheduler.address)
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""


@pytest.fixture
def on_half_an_a100(specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for notebooks, where the kernelspec `roosted` asks for half an A100."""
    specs_of(config={"gpus": 0.5, "resources": {"A100": 0.5}})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.backends("dask", "dask_tls", why="uses Dask inside a kernel")
def test_papermill_with_dask_within(on_half_an_a100: Path) -> None:
    printed = run_papermill(DASK_WITHIN, on_half_an_a100).split()
    total, threads, address, device = printed
    assert int(total) == sum(x * x for x in range(100))
    assert int(threads) == 4 + 2 + 2
    assert address == os.environ["DASK_SCHEDULER_ADDRESS"]
    assert device in "0123"


@pytest.mark.backends("dask", why="its nannies set variables")
def test_a_kernel_has_no_variables_of_the_nannies(on_half_an_a100: Path) -> None:
    names = "_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED"
    own = {name for name in os.environ if name.endswith(names)}
    code = f"import os; print({{name for name in os.environ if name.endswith({names!r})}} - {own!r})"
    assert run_papermill(code, on_half_an_a100).strip() == "set()"


@pytest.mark.backends("dask", why="uses Dask inside a kernel")
def test_the_example(on_half_an_a100: Path) -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)
    NotebookClient(notebook, timeout=int(allow_s(100)), kernel_name="roosted").execute()
    said = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.name == "stdout"
    )
    assert said.startswith(f"3 workers with 8 threads at {os.environ['DASK_SCHEDULER_ADDRESS']}\n")
    assert "CUDA_VISIBLE_DEVICES of this kernel: " in said
    assert said.count("tasks ran on") == 3
