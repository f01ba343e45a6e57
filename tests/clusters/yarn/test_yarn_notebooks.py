"""Notebooks that only name a kernelspec run in YARN's containers with a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.jupyter.notebook_runs import run_nbclient

WITHIN = """
import os
print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CONTAINER_ID"], os.environ["NM_HOST"])
print([name for name in os.environ if name.startswith(("JPY_", "JUPYTER_")) or "TOKEN" in name])
"""

pytestmark = pytest.mark.backends("yarn", why="looks at the variables of containers")


def check(printed: str) -> None:
    """Check that the kernel had one GPU, a container on the A100 node, and only one variable of Jupyter."""
    (device, container, node), variables = printed.splitlines()[0].split(), printed.splitlines()[1]
    assert device in ("0", "1", "2", "3")
    assert container.startswith("container_")
    assert node.endswith(".13")
    assert variables == "['JPY_PARENT_PID']"


def test_nbclient(on_an_a100: Path) -> None:
    check(run_nbclient(WITHIN))
