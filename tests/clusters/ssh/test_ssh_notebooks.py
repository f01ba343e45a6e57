"""Notebooks that only name a kernelspec run on SSH hosts."""

from __future__ import annotations

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
