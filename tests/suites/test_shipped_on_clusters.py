"""The Python kernelspecs of old gateways that name a cluster: migrated, each runs a cell there.

Where their image, interpreter, hosts and Spark are not to be had, those of the tests take their place.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.jupyter.kernelspec_table import RUN_ON
from kit.jupyter.notebook import Notebook
from kit.jupyter.shipped_kernelspecs import COMMANDS, list_of_gateway, why_not
from roost.testing.deadlines import allow_s

OURS = (
    (r'"image": "elyra/[^"]*"', '"image": "roost-test:1"'),
    (r"/opt/conda/bin/python", sys.executable),
    (r'"ssh_python_spark": "yes"', '"rack": "1"'),  # the migration has labelled the hosts of this kernelspec
)
"""Patterns in migrated kernelspecs, and what the tests have in their place."""


@pytest.fixture
def migrated(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Let Jupyter find the kernelspecs for this backend after `roost migrate`. Return their names."""
    if reason := why_not():
        pytest.skip(reason)
    names = RUN_ON[backend]
    old = {folder.name: folder for folder in list_of_gateway()}
    old |= {each.name: folder for each in COMMANDS if each.name in names and (folder := each.run(tmp_path))}
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "new"))
    (tmp_path / "config").mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-m", "roost", "migrate", *(str(old[name]) for name in names)],
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        timeout=allow_s(60),
    )
    assert done.returncode in (0, 3), done.stderr  # 3: a person has to name an image
    for name in names:
        new = tmp_path / "new" / "kernels" / name / "kernel.json"
        text = new.read_text()
        for pattern, ours in OURS:
            text = re.sub(pattern, ours, text)
        new.write_text(text)
    return names


@pytest.mark.backends(*RUN_ON, why="runs kernelspecs that name these clusters")
@pytest.mark.usefixtures("backend_runtime_dir")
async def test_a_cell_runs_in_each_kernelspec_that_names_the_cluster(
    backend: str, migrated: tuple[str, ...]
) -> None:
    for name in migrated:
        notebook = Notebook(name)
        await notebook.open()
        try:
            assert await notebook.value("6 * 7") == "42", name
            assert notebook.manager.provisioner.backend == backend  # type: ignore[union-attr]
        finally:
            await notebook.close()
