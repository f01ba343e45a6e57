"""Notebooks that only name a kernelspec run on SSH hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kit.jupyter.notebook_runs import run_nbclient

pytestmark = pytest.mark.backends("ssh", why="looks at the variables of an SSH session")
WHERE = """
import os, socket
print(socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"], "SSH_CONNECTION" in os.environ)
"""


def test_nbclient(on_an_a100: Path) -> None:
    assert run_nbclient(WHERE) == "n2 0 False\n"


def test_a_kernelspec_names_the_gpus_of_its_kernels(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs_of(config={"gpus": 1, "gpu_models": ["T4"]}, env={"CUDA_VISIBLE_DEVICES": "1"})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # of the application's own machine
    assert run_nbclient(WHERE) == "n1 1 False\n"
