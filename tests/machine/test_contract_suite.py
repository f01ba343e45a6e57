"""The contract suite on a broken backend, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from roost.testing import promises
from roost.testing.deadlines import allow_s

REPEATS = "test_claims_and_releases_may_be_repeated"
GRANTS = "test_a_slice_is_granted_once_and_refusals_are_quick"


def test_a_failed_test_does_not_harm_the_next_one(tmp_path: Path) -> None:
    """The suite runs in a pytest of its own. One test fails while it holds a unit, and the next one needs both."""
    (tmp_path / "test_broken.py").write_text(
        textwrap.dedent("""
            from dataclasses import replace
            from functools import partial

            import pytest

            from roost.placement import Device, Node
            from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend
            from roost.testing import BackendContract, FakePodCluster, open_backend


            class Broken(AgentPerKernelBackend):
                answers = 0

                async def claim(self, lease, launch=None):
                    self.answers += 1
                    return replace(await super().claim(lease), asked_at=float(self.answers))


            class TestBroken(BackendContract):
                held_s = 10.0

                @pytest.fixture(scope="class")
                def cluster(self, tmp_path_factory):
                    devices = (Device(id="0"), Device(id="1"))
                    node = Node(id="a", cpus=4, memory_bytes=8 << 30, devices=devices)
                    return FakePodCluster(tmp_path_factory.mktemp("pods"), [node])

                @pytest.fixture
                def opener(self, cluster):
                    return partial(open_backend, lambda agents: Broken(cluster, agents, linger_s=10.0))
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"{REPEATS} or {GRANTS}", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=allow_s(120),
        check=False,
    )
    assert "1 failed, 1 passed, 9 deselected" in done.stdout, done.stdout
    assert f"broken promise: {promises.SAME_ANSWER}." in done.stdout
