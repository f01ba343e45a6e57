"""Applications that run code in a kernel and end: the result is right, and roost adds no line to their output."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from kit.jupyter.notebook_runs import build_notebook
from roost.testing.deadlines import allow_s

EXECUTE = ("jupyter", "execute", "notebook.ipynb", "--output", "out")
NBCONVERT = ("jupyter", "nbconvert", "--to", "notebook", "--execute", "notebook.ipynb", "--output", "out")
PAPERMILL = ("papermill", "--no-progress-bar", "notebook.ipynb", "out.ipynb")
RUN = ("jupyter", "run", "--kernel", "roosted", "code.py")


@pytest.mark.backends("local")
@pytest.mark.parametrize("command", [EXECUTE, NBCONVERT, PAPERMILL, RUN], ids=lambda each: " ".join(each[:2]))
def test_an_application_runs_code_and_shows_nothing_of_roost(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    specs_of()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    code = "print('product', 6 * 7)"
    nbformat.write(build_notebook(code), tmp_path / "notebook.ipynb")
    (tmp_path / "code.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, text=True, capture_output=True, timeout=allow_s(120)
    )
    assert done.returncode == 0, done.stderr
    result = tmp_path / "out.ipynb"
    assert "product 42" in (result.read_text() if result.exists() else done.stdout)
    assert "kernel=" not in done.stdout + done.stderr
