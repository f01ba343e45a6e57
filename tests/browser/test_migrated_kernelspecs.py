"""Notebooks of an old gateway open in JupyterLab without a question, once `roost migrate` has moved its kernelspecs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.jupyter import browser
from kit.jupyter.browser import CELL_S, Lab
from kit.jupyter.old_kernelspecs import write_old
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s

NAME = "spark_python_yarn_cluster"
CODE = "import os; print('pid', os.getpid() > 0, 40 + 2)"


@pytest.fixture
def folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a new Jupyter Server, with its notebooks. `old` beside it is that of an old gateway."""
    folder = tmp_path / "lab"
    folder.mkdir()
    write_old(tmp_path / "old", NAME, "distributed.DistributedProcessProxy")
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_PATH"):
        monkeypatch.setenv(variable, str(folder))
    browser.prepare_lab(folder)
    yield folder
    disconnect()
    settle(runtime_dir)


@pytest.fixture
def lab(folder: Path) -> Iterator[Lab]:
    with (
        browser.running_server(folder, options=[browser.EXTENSION]) as server,
        browser.chromium() as chromium,
    ):
        lab = Lab(chromium.new_context(viewport={"width": 1280, "height": 800}).new_page(), server)
        yield lab
        lab.end_kernels()


def migrate(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "roost", "migrate", *arguments]
    subprocess.run(command, cwd=folder, check=True, timeout=allow_s(60))


def test_a_notebook_keeps_its_kernel(lab: Lab, folder: Path) -> None:
    lab.write_notebook("old.ipynb", NAME, CODE)
    lab.open("old.ipynb")
    lab.dialog("Select Kernel")  # nothing has this name yet
    migrate(folder, "--all", "--from", str(folder.parent / "old"))
    lab.open("old.ipynb")
    lab.wait_for_session()
    lab.run_again(0)
    assert lab.output(0, "pid", CELL_S).strip() == "pid True 42"
    assert lab.page.locator(".jp-Dialog").count() == 0
    (kernel,) = lab.api("GET", "kernels")
    assert kernel["name"] == NAME
    assert lab.get(f"roost/api/kernels/{kernel['id']}")["text"]
    lab.end_kernels()
    migrate(folder, "--undo")
    assert not (folder / "kernels" / NAME).exists()
