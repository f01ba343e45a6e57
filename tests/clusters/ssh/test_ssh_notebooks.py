"""Notebooks that only name a kernelspec run on SSH hosts: nbclient and Papermill."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.backends("ssh")
WHERE = """
import os, socket
print(socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"], "SSH_CONNECTION" in os.environ)
"""


def written(folder: Path) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WHERE)])
    notebook.metadata["kernelspec"] = {"name": "roosted", "display_name": "roosted", "language": "python"}
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)
    return path


def test_nbclient(on_an_a100: Path) -> None:
    notebook = nbformat.read(written(on_an_a100), as_version=4)
    NotebookClient(notebook, timeout=int(allow_s(100))).execute()
    assert notebook.cells[0].outputs[0].text == "n2 0 False\n"


def test_papermill(on_an_a100: Path) -> None:
    out = on_an_a100 / "out.ipynb"
    papermill.execute_notebook(str(written(on_an_a100)), str(out), progress_bar=False)
    assert nbformat.read(out, as_version=4).cells[0].outputs[0].text == "n2 0 False\n"
