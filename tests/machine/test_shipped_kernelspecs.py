"""The kernelspecs that old gateways ship or generate: the table of the page, and a cell in each that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.jupyter.kernelspec_table import RUN_HERE, build_table, read_table
from kit.jupyter.notebook import Notebook
from kit.jupyter.shipped_kernelspecs import COMMANDS, PLAIN, list_of_gateway, why_not
from roost.provisioners.provisioner import RoostProvisioner
from roost.testing.deadlines import allow_s


@pytest.fixture(autouse=True)
def shipped() -> None:
    if reason := why_not():
        pytest.skip(reason)


def test_the_table_of_the_page(tmp_path: Path) -> None:
    assert build_table(tmp_path) == read_table(), "write it again: python -m kit.jupyter.kernelspec_table"


@pytest.fixture
def migrated(settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Jupyter find the kernelspecs that run here, migrated. One needs no migration, and is there as it is."""
    old = {folder.name: folder for folder in list_of_gateway()}
    old |= {
        each.name: folder for each in COMMANDS if each.name in RUN_HERE and (folder := each.run(tmp_path))
    }
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "new"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir(mode=0o700)
    theirs = [str(old[name]) for name in RUN_HERE if name != PLAIN]
    subprocess.run([sys.executable, "-m", "roost", "migrate", *theirs], check=True, timeout=allow_s(60))
    (tmp_path / "new" / "kernels" / PLAIN).symlink_to(old[PLAIN])


@pytest.mark.usefixtures("migrated")
@pytest.mark.parametrize("name", RUN_HERE)
async def test_a_cell_runs(name: str) -> None:
    notebook = Notebook(name, env={**os.environ, "KERNEL_USERNAME": "bob"})
    await notebook.open()
    try:
        assert await notebook.value("6 * 7") == "42"
        assert isinstance(notebook.manager.provisioner, RoostProvisioner) == (name != PLAIN)
    finally:
        await notebook.close()
