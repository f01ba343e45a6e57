"""Notebooks that only name a kernelspec run in pods with a GPU: nbclient and Papermill."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.jupyter.notebook_runs import run_nbclient, run_papermill

WITHIN = """
import os
print(os.environ["NVIDIA_VISIBLE_DEVICES"], os.getuid(), os.environ["HOSTNAME"])
print([name for name in os.environ if name.startswith(("JPY_", "JUPYTER_"))])
"""

pytestmark = pytest.mark.backends("kubernetes", why="looks at the variables of pods")


def check(printed: str) -> None:
    """Check that the kernel had a GPU, the user id 12345, a pod of roost, and only one variable of Jupyter."""
    (device, uid, pod), variables = printed.splitlines()[0].split(), printed.splitlines()[1]
    assert device.startswith("GPU-")
    assert uid == "12345"
    assert pod.startswith("roost-")
    assert variables == "['JPY_PARENT_PID']"


def test_papermill(on_an_a100: Path) -> None:
    check(run_papermill(WITHIN, on_an_a100))


def test_nbclient(on_an_a100: Path) -> None:
    check(run_nbclient(WITHIN))
