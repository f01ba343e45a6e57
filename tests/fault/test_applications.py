"""kill -9 of what holds the kernels: a notebook run that cannot come back, and a server that can."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from world import wait_gone

import roost
from roost.launchers.daemon.process import is_running, start_time
from roost.scheduler.service.messages import Kernel

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("roost_by_default")]

OWNER_GRACE_S = 10.0
TOKEN = "for-this-test-only"


async def until_kernel(state: str = "running") -> Kernel:
    """The one kernel there is, once it is in that state."""
    client = roost.connect("local")
    for _ in range(600):
        for kernel in await client.kernels():
            if kernel.state == state:
                return kernel
        await asyncio.sleep(0.05)
    raise AssertionError(f"no kernel came to be {state}")


async def test_kill_a_notebook_run(world: Path, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import time; time.sleep(600)")],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "long.ipynb")
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jupyter", "execute", str(tmp_path / "long.ipynb"), start_new_session=True
    )
    kernel = await until_kernel()
    started_at = start_time(kernel.pid)
    run.kill()
    await run.wait()
    killed_at = time.monotonic()
    assert is_running(kernel.pid, started_at)
    assert await asyncio.to_thread(wait_gone, kernel.pid, OWNER_GRACE_S + 5)
    assert time.monotonic() - killed_at >= OWNER_GRACE_S / 2, "it had no time to reconnect"
    for _ in range(100):
        if not await roost.connect("local").kernels():
            break
        await asyncio.sleep(0.05)
    assert await roost.connect("local").kernels() == []
    roost.connect("local").close()


@asynccontextmanager
async def jupyter_server(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A real server on a free port of 127.0.0.1, and its address; killed at the end if it still runs."""
    config = {
        "ServerApp": {
            "ip": "127.0.0.1",
            "port": 0,
            "open_browser": False,
            "allow_root": True,
            "root_dir": str(folder),
        },
        "IdentityProvider": {"token": TOKEN},
    }
    (folder / "server.json").write_text(json.dumps(config))
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jupyter_server", f"--config={folder / 'server.json'}",
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "JUPYTER_RUNTIME_DIR": str(folder / "runtime")},
        start_new_session=True,
    )  # fmt: skip
    assert server.stderr is not None
    try:
        while True:
            line = (await asyncio.wait_for(server.stderr.readline(), 60)).decode()
            assert line, "the server ended"
            if "http://127.0.0.1:" in line:
                yield (
                    server,
                    line[line.index("http://") :]
                    .split("?")[0]
                    .strip()
                    .rsplit("/", 1)[0]
                    .removesuffix("/tree"),
                )
                break
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
    )
    for _ in range(200):  # the server names its port before it listens
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as problem:
            if not isinstance(problem.reason, ConnectionRefusedError):
                raise
            time.sleep(0.05)
    raise AssertionError(f"nobody listens at {url}")


async def test_kill_a_jupyter_server(world: Path, tmp_path: Path) -> None:
    async with jupyter_server(tmp_path) as (server, address):
        started = await asyncio.to_thread(call, f"{address}/api/kernels", {"name": "python3"})
        kernel = await until_kernel()
        assert kernel.id == started["id"]
        assert kernel.owner.can_adopt
        started_at = start_time(kernel.pid)
        server.send_signal(signal.SIGKILL)
        await server.wait()
    assert not await asyncio.to_thread(wait_gone, kernel.pid, OWNER_GRACE_S + 3)
    assert is_running(kernel.pid, started_at)
    (still,) = await roost.connect("local").kernels()
    assert (still.id, still.pid, still.state) == (kernel.id, kernel.pid, "running")
    await roost.connect("local").stop(kernel.id)
    assert not is_running(kernel.pid, started_at)
    roost.connect("local").close()


async def test_users_who_are_not_allowed_get_403(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "jupyter_roost_config.py").write_text("c.RoostScheduler.allowed_users = ['ada']\n")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(config))
    monkeypatch.setenv("KERNEL_USERNAME", "mallory")
    async with jupyter_server(tmp_path) as (_, address):
        with pytest.raises(urllib.error.HTTPError) as failure:
            await asyncio.to_thread(call, f"{address}/api/kernels", {"name": "python3"})
        assert failure.value.code == 403
        assert "mallory" in failure.value.read().decode()
        failure.value.close()
        assert await asyncio.to_thread(call, f"{address}/api/kernels") == []
    roost.connect("local").close()


async def test_a_server_stops_though_a_start_was_refused(world: Path, tmp_path: Path) -> None:
    spec = tmp_path / "share" / "kernels" / "impossible"
    spec.mkdir(parents=True)
    provisioner = {"provisioner_name": "roost", "config": {"memory": "4000TiB"}}
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "",
        "language": "python",
        "metadata": {"kernel_provisioner": provisioner},
    }
    (spec / "kernel.json").write_text(json.dumps(kernel))
    os.environ["JUPYTER_PATH"] = str(tmp_path / "share")
    try:
        async with jupyter_server(tmp_path) as (server, address):
            await asyncio.to_thread(call, f"{address}/api/kernels", {"name": "python3"})
            with pytest.raises(urllib.error.HTTPError) as failure:
                await asyncio.to_thread(call, f"{address}/api/kernels", {"name": "impossible"})
            assert failure.value.code == 400
            failure.value.close()
            server.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(server.wait(), 15) == 0
    finally:
        del os.environ["JUPYTER_PATH"]
    assert await roost.connect("local").kernels() == []
    roost.connect("local").close()
