"""Functions that run a notebook in Papermill or nbclient by the name of its kernelspec alone."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
from nbclient import NotebookClient

from roost.testing.deadlines import allow_s


def build_notebook(code: str) -> nbformat.NotebookNode:
    """Return a notebook with one cell, for the kernelspec `roosted`."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "roosted", "display_name": "roosted", "language": "python"}
    return notebook


def run_papermill(code: str, folder: Path) -> str:
    """Run a notebook with this code by Papermill, with its files in `folder`. Return its output."""
    source, result = folder / "notebook.ipynb", folder / "out.ipynb"
    nbformat.write(build_notebook(code), source)
    papermill.execute_notebook(str(source), str(result), progress_bar=False)
    return _read_stdout(nbformat.read(result, as_version=4))


def run_nbclient(code: str) -> str:
    """Run a notebook with this code by nbclient. Return its output."""
    notebook = build_notebook(code)
    NotebookClient(notebook, timeout=int(allow_s(100))).execute()
    return _read_stdout(notebook)


def _read_stdout(notebook: nbformat.NotebookNode) -> str:
    (cell,) = notebook.cells
    return "".join(output.text for output in cell.outputs if output.name == "stdout")
