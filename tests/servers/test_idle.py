"""Kernels that end because they are idle, and kernels that look idle but are busy."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from server import jupyter_server

import roost
from kit.jupyter.front_end import front_end, states
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.restarted_servers import EXTENSIONS, start
from kit.machine.daemons import daemon_pids, settle
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.backends("local", why="the same scheduler and agent on every backend")
IDLE_S = 6.0
WORK = {
    "cell": "import time; time.sleep(600)",
    "input": "input()",
    "thread": "import threading\ndef work():\n  while True: pass\nthreading.Thread(target=work, daemon=True).start()",
    "child": "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'while True: pass'])",
    "output": """
import sys, threading, time
def speak():
    while True:
        print(end=".", flush=True)
        time.sleep(0.5)
threading.Thread(target=speak, daemon=True).start()
""",
}


@pytest.fixture
def config_file(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a configuration file with which idle kernels end soon."""
    file = runtime_dir / "config" / "jupyter_roost_config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"RoostScheduler": {"idle_after_s": IDLE_S}}))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(file.parent))
    yield file
    settle(runtime_dir)


def test_only_a_kernel_that_does_nothing_ends(config_file: Path) -> None:
    client = connect("local")
    events: list[tuple[str, str]] = []
    unlisten = client.listen(
        lambda event: events.append((event.kind, event.kernel.id if event.kernel else ""))
    )
    with ExitStack() as kernels:
        idle = kernels.enter_context(roost.start_kernel("python3", backend="local"))
        working = {}
        for name, code in WORK.items():
            working[name] = kernels.enter_context(roost.start_kernel("python3", backend="local"))
            channels = working[name].client()
            kernels.callback(channels.stop_channels)
            channels.execute(code, allow_stdin=True)
        until_blocking(
            lambda: client.kernel(idle.id).result(allow_s(10)).state == "exited",
            "the idle kernel ends",
            60,
            0.1,
        )
        time.sleep(2 * IDLE_S)
        ended = client.kernel(idle.id).result(allow_s(10))
        assert ended.reason == f"culled: idle for longer than {IDLE_S:.0f} s"
        assert events.index(("warned", idle.id)) < events.index(("cull", idle.id))
        states_now = {
            name: client.kernel(kernel.id).result(allow_s(10)).state for name, kernel in working.items()
        }
        assert states_now == dict.fromkeys(WORK, "running")
    unlisten()


@pytest.mark.parametrize("waits_for", ["file", "input"])
def test_a_cell_that_outlives_its_agent_is_not_idle(
    config_file: Path, runtime_dir: Path, tmp_path: Path, waits_for: str
) -> None:
    end = tmp_path / "end"
    wait = f"import os, time\nwhile not os.path.exists({str(end)!r}): time.sleep(0.1)"
    code = wait if waits_for == "file" else "input()"
    client = connect("local")
    with (
        roost.start_kernel("python3", backend="local") as working,
        roost.start_kernel("python3", backend="local") as idle,
    ):
        channels = working.client()
        request = channels.execute(code, allow_stdin=True)
        while channels.get_iopub_msg(timeout=allow_s(60))["msg_type"] != "execute_input":
            pass
        (agent,) = daemon_pids(runtime_dir, "agent")
        os.kill(agent, signal.SIGKILL)
        until_blocking(
            lambda: client.kernel(idle.id).result(allow_s(60)).state == "exited",
            "the next agent knows that the other kernel is idle",
            60,
            0.1,
        )
        time.sleep(IDLE_S)
        assert client.kernel(working.id).result(allow_s(60)).state == "running"
        channels.input("42") if waits_for == "input" else end.touch()
        reply = channels.get_shell_msg(timeout=allow_s(60))
        assert (reply["parent_header"]["msg_id"], reply["content"]["status"]) == (request, "ok")
        channels.stop_channels()


async def test_a_server_does_not_start_an_idle_kernel_again(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernelspecs(tmp_path, backend="local")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    async with jupyter_server(tmp_path, options=(f"--ServerApp.jpserver_extensions={EXTENSIONS}",)) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            await front.ended(await front.run("print(42)"))
            await front.until(lambda: "dead" in states(front.messages), 60)
            assert "restarting" not in states(front.messages)
        assert (await server.api("GET", f"kernels/{kernel_id}"))[0] == 404
    ended = connect("local").kernel(kernel_id).result(allow_s(10))
    assert ended.reason == f"culled: idle for longer than {IDLE_S:.0f} s"
