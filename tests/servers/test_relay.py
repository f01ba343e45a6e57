"""A client whose service is reached through a relay. The relay runs as this user here; real sudo is in another test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.machine.daemons import daemon_pids, kill, wait_gone
from roost.placement.model import Request
from roost.scheduler.client.client import Client
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.messages import Connection, StartKernel
from roost.testing.deadlines import allow_s

PROGRAM = """
import sys
from roost.scheduler.client import relay

relay.read_first_person = lambda: 0
relay.REST_S = 2.0
sys.exit(relay.main())
"""


@pytest.fixture
def way(settled_runtime_dir: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield the list of relays that were started."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        assert wait_gone(each.pid, 20), "a relay ends soon after its last connection"
        each.wait()


def test_a_kernel_through_a_relay(settled_runtime_dir: Path, way: list[subprocess.Popen[bytes]]) -> None:
    path = settled_runtime_dir / "relay"

    def reach() -> str:
        if not way or way[-1].poll() is not None:
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen()
                environment = {**os.environ, "SUDO_UID": str(os.getuid()), "SUDO_USER": "gateway"}
                command = [sys.executable, "-c", PROGRAM, "local"]
                way.append(subprocess.Popen(command, stdin=listener, env=environment))
        return f"ipc://{path}"

    client = Client("local", reach=reach)
    start = StartKernel(
        kernel_id="k",
        launch_id="one",
        request=Request(),
        owner=this_owner("ada"),
        argv=(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        env={"MINE": "${HOME}/x", "KERNEL_USERNAME": "ada"},
        cwd="",
        connection=Connection(),
        is_of_another_user=True,
    )
    kernel = client.start(start).result(allow_s(60))
    assert kernel.process is not None
    pid = kernel.process.pid
    environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    assert f"MINE={os.environ['HOME']}/x" in environment or kernel.how == "forked"
    assert not [each for each in environment if each.startswith("SUDO_")]
    assert os.readlink(f"/proc/{pid}/cwd") == os.path.expanduser("~")
    (service,) = daemon_pids(settled_runtime_dir, "scheduler")
    kill(way[0].pid)
    kill(service)
    assert [each.id for each in client.kernels().result(allow_s(60))] == ["k"]
    assert len(way) == 2
    client.stop("k").result(allow_s(60))
    assert wait_gone(pid, 10)
    client.close()
    os.kill(daemon_pids(settled_runtime_dir, "scheduler")[0], signal.SIGTERM)
