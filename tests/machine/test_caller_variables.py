"""The latest caller's variables reach the backend of a service that an earlier caller has started, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.machine.daemons import daemon_pids, settle
from kit.machine.live_folders import read_files
from roost.testing.deadlines import allow_s, until_blocking

SPEC = """
from roost.scheduler.backends.spec import BackendSpec

SPEC = BackendSpec(
    name="noting",
    settings="noting_backend:RoostNotingBackend",
    create="noting_backend:create",
    caller_variables=("NOTED_AGENT", "NOTED_TICKETS"),
)
"""
BACKEND = """
import json
from roost.scheduler.backends.local.backend import LocalBackend
from roost.scheduler.backends.local.settings import RoostLocalBackend

class RoostNotingBackend(RoostLocalBackend):
    pass

class NotingBackend(LocalBackend):
    name = "noting"

    def note_caller(self, variables):
        with open(NOTED, "a") as file:
            print(json.dumps(dict(variables)), file=file)

def create(settings, context):
    return NotingBackend(settings, context)
"""
START = """
import roost
with roost.start_kernel(backend="noting") as kernel:
    print(kernel.execute("import os; print(dict(os.environ))", check=True).stdout)
"""
SECRETS = ("/tmp/ssh-first/agent.1", "/tmp/ssh-second/agent.2", "FILE:/tmp/krb5cc_second")


@pytest.fixture
def noted(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a backend on this machine that wants variables. Return the file in which it notes them."""
    packages, noted = tmp_path / "packages", tmp_path / "noted"
    metadata = packages / "noting-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: noting\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[roost.backends]\nnoting = noting:SPEC\n")
    (packages / "noting.py").write_text(SPEC)
    (packages / "noting_backend.py").write_text(f"NOTED = {str(noted)!r}\n{BACKEND}")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    )
    for name in ("NOTED_AGENT", "NOTED_TICKETS"):
        monkeypatch.delenv(name, raising=False)
    yield noted
    settle(runtime_dir)


def run(*argv: str, **environment: str) -> str:
    """Run Python with these variables, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=allow_s(120),
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_latest_callers_variables_reach_the_backend_alone(noted: Path, runtime_dir: Path) -> None:
    first, second, tickets = SECRETS
    nodes = ("-m", "roost", "nodes", "--backend", "noting")
    run(*nodes, NOTED_AGENT=first)
    (service,) = daemon_pids(runtime_dir, "scheduler-noting")
    printed = run("-c", START, NOTED_AGENT=second, NOTED_TICKETS=tickets)
    run(*nodes)
    assert daemon_pids(runtime_dir, "scheduler-noting") == [service], "one service has served all callers"

    calls = [json.loads(line) for line in noted.read_text().splitlines()]
    latest = {"NOTED_AGENT": second, "NOTED_TICKETS": tickets}
    assert calls[0] == {"NOTED_AGENT": first, "NOTED_TICKETS": ""}
    assert len(calls) >= 4
    assert calls[1:-1] == [latest] * len(calls[1:-1]), "at the connection and with the start"
    assert calls[-1] == {"NOTED_AGENT": "", "NOTED_TICKETS": ""}

    assert "JPY_PARENT_PID" in printed
    assert "ssh-second" not in printed
    assert "krb5cc_second" not in printed
    written = dict(read_files(runtime_dir))
    assert len(written) > 5
    for path, content in written.items():
        assert not [secret for secret in SECRETS if secret.encode() in content], path
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes()
        except OSError:
            continue
        assert not [secret for secret in SECRETS if secret.encode() in words], process


FAKE_SSH = """#!/bin/sh
printf '%s %s\\n' "$SSH_AUTH_SOCK" "$*" >> "$0.log"
echo 'n1: Permission denied (publickey).' >&2
exit 255
"""


def listen(path: Path) -> socket.socket:
    agent = socket.socket(socket.AF_UNIX)
    agent.bind(str(path))
    agent.listen(100)
    return agent


def test_ssh_logs_in_with_the_latest_callers_agent(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's first caller has ended its session, and with it its ssh-agent."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    fake, log = tmp_path / "ssh", tmp_path / "ssh.log"
    fake.write_text(FAKE_SSH)
    fake.chmod(0o700)
    options = {"hosts": ["n1"], "ssh": [str(fake)]}
    command = ["-m", "roost", "nodes", "--backend", "ssh"]
    for name, value in options.items():
        command += ["--backend-option", f"{name}={json.dumps(value)}"]
    first, second, third = (runtime_dir / name for name in ("first", "second", "third"))

    def wait_for(agent: Path) -> None:
        def is_logged() -> bool:
            if log.exists() and f"{agent} " in log.read_text():
                return True
            run(*command, SSH_AUTH_SOCK=str(agent))
            return False

        until_blocking(is_logged, lambda: f"ssh uses {agent}: {log.read_text()}", 60, 0.0)

    try:
        with listen(first):
            wait_for(first)
        (service,) = daemon_pids(runtime_dir, "scheduler-ssh")
        with listen(second), listen(third):
            wait_for(second)
            before = len(log.read_text().splitlines())
            run(*command, SSH_AUTH_SOCK=str(first))  # an application of yesterday
            run(*command)  # a program of cron
            wait_for(third)
        assert daemon_pids(runtime_dir, "scheduler-ssh") == [service]
        later = log.read_text().splitlines()[before:]
        assert {line.partition(" ")[0] for line in later} <= {str(second), str(third)}
        for line in log.read_text().splitlines():
            argv = line.partition(" ")[2]
            assert not [agent for agent in (first, second, third) if str(agent) in argv]
    finally:
        settle(runtime_dir)
