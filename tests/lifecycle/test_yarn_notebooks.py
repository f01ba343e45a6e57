"""Notebooks in YARN's containers, chosen by a kernelspec's name alone: nbclient and Papermill, with a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

WITHIN = """
import os
print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CONTAINER_ID"], os.environ["NM_HOST"])
print([name for name in os.environ if name.startswith(("JPY_", "JUPYTER_")) or "TOKEN" in name])
"""

pytestmark = pytest.mark.backends("yarn", why="looks at the variables of containers")


@pytest.fixture
def on_an_a100(specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for notebooks, where the kernelspec `roosted` asks for an A100."""
    specs_of(config={"gpus": 1, "gpu_models": ["A100"]})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return tmp_path


def a_notebook() -> nbformat.NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WITHIN)])
    notebook.metadata["kernelspec"] = {"name": "roosted", "display_name": "roosted", "language": "python"}
    return notebook


def check(notebook: nbformat.NotebookNode) -> None:
    """The kernel had one GPU, a container on the only node with A100s, and nothing of Jupyter's environment."""
    (cell,) = notebook.cells
    printed = "".join(output.text for output in cell.outputs if output.name == "stdout")
    (device, container, node), variables = printed.splitlines()[0].split(), printed.splitlines()[1]
    assert device in ("0", "1", "2", "3")
    assert container.startswith("container_")
    assert node.endswith(".13")
    assert variables == "[]"


def test_papermill(on_an_a100: Path) -> None:
    source, result = on_an_a100 / "notebook.ipynb", on_an_a100 / "out.ipynb"
    nbformat.write(a_notebook(), source)
    papermill.execute_notebook(str(source), str(result), progress_bar=False)
    check(nbformat.read(result, as_version=4))


def test_nbclient(on_an_a100: Path) -> None:
    notebook = a_notebook()
    NotebookClient(notebook, timeout=100, kernel_name="roosted").execute()
    check(notebook)
