"""The Docker engine of the tests: it is real, its daemon can be killed, and nothing stays on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kit import TESTS
from kit.clusters.docker_engine import IMAGE, DockerEngine, leftovers, why_not
from roost.bench.clusters.cluster_folder import wait_until
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LONG_S = 60.0
OWNER = """
import sys
from kit.clusters.docker_engine import DockerEngine, IMAGE
with DockerEngine() as engine:
    engine.run("run", "--detach", IMAGE, "sleep", "1000")
    print(engine.folder, flush=True)
    sys.stdin.read()
"""


def test_the_image_has_a_python_and_a_user_of_its_own() -> None:
    with DockerEngine() as engine:
        assert engine.objects() == []
        script = "import ipykernel, os; print(os.getuid())"
        assert engine.run("run", "--rm", IMAGE, "python3", "-c", script) == "1000\n"
        engine.run("run", "--detach", "--name", "sleeper", IMAGE, "sleep", "1000")
        engine.kill()
        engine.start()
        (sleeper,) = engine.objects()
        assert sleeper.startswith("container sleeper Exited (137)")
    assert leftovers(engine.folder) == []


def test_a_killed_test_leaves_no_process_and_the_next_one_removes_the_rest() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        owner.send_signal(signal.SIGKILL)
        owner.wait()

    def has_no_processes() -> bool:
        return not any(line.startswith(("process", "mount", "device")) for line in leftovers(folder))

    wait_until(has_no_processes, "the engine lives on", timeout_s=allow_s(LONG_S))
    with DockerEngine():
        assert leftovers(folder) == []
