"""An upgrade of roost under a live kernel: the rule of versions in `roost.launchers.protocol.shared_values`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import roost
from kit.machine.daemons import agent_folder, daemon_pids, kill, wait_gone
from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.protocol.messages import PROTOCOL
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s

PRODUCT = ("launchers", "placement", "provisioners", "scheduler")
APPLICATION = """
import roost
with roost.start_kernel() as kernel:
    kernel.execute("answer = 41", check=True)
    print(kernel.id, flush=True)
    input()
    print(kernel.execute("answer + 1", check=True).text, flush=True)
"""

StartOld = Callable[[int], "subprocess.Popen[str]"]


@pytest.fixture
def start_old(settled_runtime_dir: Path, tmp_path: Path) -> Iterator[StartOld]:
    """Return a function that starts an application, with a kernel, of an older roost with this agent's protocol."""
    started: list[subprocess.Popen[str]] = []

    def start(protocol: int) -> subprocess.Popen[str]:
        source, old = Path(roost.__file__).parent, tmp_path / "roost"
        for name in PRODUCT:
            shutil.copytree(source / name, old / name, ignore=shutil.ignore_patterns("__pycache__"))
        for file in source.glob("*.py"):
            shutil.copy(file, old)
        _edit(old / "__init__.py", r'__version__ = ".*"', '__version__ = "0.0.1"')
        _edit(
            old / "launchers" / "protocol" / "messages.py",
            r"\nPROTOCOL = \d+\n",
            f"\nPROTOCOL = {protocol}\n",
        )
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen([sys.executable, "-c", APPLICATION], env=env, stdin=pipe, stdout=pipe, text=True)
        )
        return started[-1]

    yield start
    for application in started:
        application.kill()
        application.communicate()


def _edit(file: Path, pattern: str, text: str) -> None:
    content, count = re.subn(pattern, text, file.read_text())
    assert count == 1
    file.write_text(content)


def _read_line(application: subprocess.Popen[str]) -> str:
    assert application.stdout is not None
    return application.stdout.readline().strip()


def test_service_and_agent_are_upgraded_under_a_live_kernel(
    settled_runtime_dir: Path, start_old: StartOld
) -> None:
    application = start_old(PROTOCOL)
    kernel_id = _read_line(application)
    assert kernel_id, "the older roost has started no kernel"
    (old_service,), (old_agent,) = _find_daemons(settled_runtime_dir)
    old = read_announcement(agent_folder(settled_runtime_dir))
    assert old is not None
    assert old["version"] == "0.0.1"

    client = roost.connect()
    kernel = client.kernel(kernel_id).result(allow_s(60))
    assert kernel.state == "running"
    assert client.service().result(allow_s(60))["version"] == roost.__version__
    assert wait_gone(old_service)
    assert wait_gone(old_agent)
    new = read_announcement(agent_folder(settled_runtime_dir))
    assert new is not None
    assert (new["version"], new["protocol"]) == (roost.__version__, PROTOCOL)

    output, _ = application.communicate("\n", allow_s(60))
    assert output.strip() == "42", "the older application has lost its kernel"
    assert application.returncode == 0


def test_an_agent_of_another_protocol_stays_with_its_kernel(
    settled_runtime_dir: Path, start_old: StartOld
) -> None:
    application = start_old(PROTOCOL - 1)
    kernel_id = _read_line(application)
    assert kernel_id, "the older roost has started no kernel"
    (old_service,), (old_agent,) = _find_daemons(settled_runtime_dir)
    client = roost.connect()
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=rf"run `kill {old_service}` and this again"):
            client.nodes().result(allow_s(60))
        assert not wait_gone(old_service, 0), "a call that is refused has ended the older service"
    application.send_signal(signal.SIGSTOP)  # or it would start its service again
    kill(old_service)  # or it would end the kernel of the application
    application.kill()

    with pytest.raises(BackendUnavailable, match=rf"ends it and its kernels {kernel_id}\b") as refusal:
        client.nodes().result(allow_s(60))
    found = re.search(rf"`kill {old_agent} (\d+)`", str(refusal.value))
    assert found is not None
    kernel = int(found[1])
    assert not wait_gone(kernel, 0)
    for pid in (old_agent, kernel):
        os.kill(pid, signal.SIGTERM)
    assert wait_gone(old_agent)
    assert wait_gone(kernel)
    assert client.nodes().result(allow_s(60))


def _find_daemons(runtime_dir: Path) -> tuple[list[int], list[int]]:
    """Return the pids of the services and of the agents."""
    return daemon_pids(runtime_dir, "scheduler"), daemon_pids(runtime_dir, "agent")
