"""A Jupyter Server goes on watching its kernels while the service ends, cannot start, and starts again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.jupyter.restarted_servers import listed, run_server, start
from kit.machine.daemons import daemon_pids, kill, settle
from roost.bench.world import ROOST, write_kernelspec
from roost.scheduler.client.client import connect, disconnect
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import allow_s, until

MISSPELT = "c.RoostScheduler.idel_after_s = 20\n"
WITHIN_S = 6.0
"""How long the server's list may show a kernel that has ended."""


@pytest.fixture
def config(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    write_kernelspec(tmp_path / "share" / "kernels" / "roosted", ROOST)
    yield tmp_path / "jupyter_roost_config.py"
    disconnect()
    settle(runtime_dir)


def shell(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roost", *argv]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=allow_s(120), check=False
    )


async def until_running(*kernels: str) -> None:
    found: list[Kernel] = []

    async def do_run() -> bool:
        nonlocal found
        found = await connect().kernels()
        return {kernel.id for kernel in found if kernel.state == "running"} == {*kernels}

    await until(do_run, lambda: f"exactly {kernels} run: {found}", 60, 0.1)


async def test_the_list_is_right_after_a_service_that_could_not_start(
    runtime_dir: Path, tmp_path: Path, config: Path
) -> None:
    """Each round kills the service, breaks its configuration, mends it, and ends a kernel from a shell."""
    rounds = int(os.environ.get("ROOST_ROUNDS", "2"))
    took_s = []
    async with run_server(tmp_path) as server:
        kept = await start(server, "roosted")
        for _ in range(rounds):
            ended = await start(server, "roosted")
            await until_running(kept, ended)
            assert (await listed(server)).keys() == {kept, ended}
            (pid,) = daemon_pids(runtime_dir, "scheduler")
            config.write_text(MISSPELT)
            await asyncio.to_thread(kill, pid)
            failed = await asyncio.to_thread(shell, "kernels")
            assert failed.returncode != 0
            assert "idel_after_s" in failed.stderr
            config.write_text("")
            done = await asyncio.to_thread(shell, "stop", ended)
            assert done.returncode == 0, done.stderr
            began = time.monotonic()

            async def is_dead(kernel_id: str = ended) -> bool:
                return (await listed(server)).get(kernel_id, "dead") == "dead"

            await until(is_dead, "the list has no ended kernel", WITHIN_S)
            took_s.append(time.monotonic() - began)
            assert (await listed(server))[kept] != "dead"
    print(f"the list was right after {min(took_s):.2f} to {max(took_s):.2f} s in {rounds} rounds")


async def test_what_a_person_does_while_no_service_can_start(
    runtime_dir: Path, tmp_path: Path, config: Path
) -> None:
    """What was stopped ends as soon as the settings are right. A start that waits keeps its place."""
    write_kernelspec(config.parent / "share" / "kernels" / "whole", ROOST, config={"cpus": os.cpu_count()})
    config.write_text(right := f"c.RoostLocalBackend.cpus = {os.cpu_count()}\n")
    async with run_server(tmp_path) as server:
        stopped = await start(server, "whole")
        await until_running(stopped)
        waits = await start(server, "whole")
        (pid,) = daemon_pids(runtime_dir, "scheduler")
        config.write_text(MISSPELT)
        await asyncio.to_thread(kill, pid)
        status, answer = await server.api("POST", f"kernels/{stopped}/interrupt", {})
        assert (status, "idel_after_s" in answer["message"]) == (400, True)
        status, _ = await server.api("POST", f"kernels/{stopped}/restart", {})
        _, kernel = await server.api("GET", f"kernels/{stopped}")
        assert (status, kernel["execution_state"] == "dead") == (500, False)
        assert kernel["reason"].startswith("The kernel was not restarted: ")
        assert "idel_after_s" in kernel["reason"]
        status, _ = await server.api("DELETE", f"kernels/{stopped}")
        assert status == 204
        assert (await listed(server)).keys() == {waits}
        await asyncio.sleep(3)
        config.write_text(right)
        await until_running(waits)
        assert {kernel.id for kernel in await connect().kernels()} == {waits}
