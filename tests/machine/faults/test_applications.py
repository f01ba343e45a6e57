"""kill -9 of an application that has kernels: `jupyter execute`, which cannot come back, and a server, which can."""

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

import roost
from kit import TESTS
from kit.jupyter.restarted_servers import none_is_left
from kit.machine.daemons import wait_gone
from roost.launchers.daemon.process import is_running, start_time
from roost.scheduler.messages import Kernel
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until

pytestmark = [pytest.mark.usefixtures("roost_by_default")]

TOKEN = "for-this-test-only"


async def until_kernel(state: str = "running") -> Kernel:
    """Wait until the only kernel is in that state, and return it."""
    client = roost.connect("local")

    async def find() -> Kernel | None:
        return next((kernel for kernel in await client.kernels() if kernel.state == state), None)

    return await until(find, f"a kernel is {state}", 30)


async def test_kill_a_notebook_run(
    short_owner_grace: float, settled_runtime_dir: Path, tmp_path: Path
) -> None:
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
    assert is_running(kernel.pid, started_at)
    killed_at = time.monotonic()
    run.kill()
    await run.wait()
    assert await asyncio.to_thread(wait_gone, kernel.pid, 60)
    assert time.monotonic() - killed_at >= short_owner_grace

    async def has_none() -> bool:
        return not await roost.connect("local").kernels()

    await until(has_none, "the service has no kernel")
    roost.connect("local").close()


@asynccontextmanager
async def jupyter_server(
    folder: Path, *, has_extension: bool = False
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start a Jupyter Server on a free port of 127.0.0.1; yield it and its address. At the end it is killed."""
    config = {
        "ServerApp": {
            "ip": "127.0.0.1",
            "port": 0,
            "open_browser": False,
            "allow_root": True,
            "root_dir": str(folder),
            "jpserver_extensions": {"roost": has_extension},
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
            line = (await asyncio.wait_for(server.stderr.readline(), allow_s(60))).decode()
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
    for _ in range(1200):  # the server names its port before it listens
        try:
            with urllib.request.urlopen(request, timeout=allow_s(60)) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as problem:
            if not isinstance(problem.reason, ConnectionRefusedError):
                raise
            time.sleep(0.05)
    raise AssertionError(f"nobody listens at {url}")


ANOTHER_OWNER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import roost
from kit.machine.tiny_kernel import tiny

async def main():
    print((await roost.connect("local").start(tiny("another"))).pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def until_owner_grace_is_over() -> None:
    """Wait until the grace is over for every owner that ended before this call.

    To do so, kill a new owner of a kernel and wait for the kernel's end: all older graces are over by then.
    """
    folder = str(TESTS)
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ANOTHER_OWNER, folder, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    pid = int(await asyncio.wait_for(owner.stdout.readline(), allow_s(60)))
    owner.kill()
    await owner.wait()
    assert await asyncio.to_thread(wait_gone, pid, 20)


async def test_kill_a_jupyter_server_that_adopts_no_kernels(
    short_owner_grace: float, settled_runtime_dir: Path, tmp_path: Path
) -> None:
    async with jupyter_server(tmp_path) as (server, address):
        await asyncio.to_thread(call, f"{address}/api/kernels", {"name": "python3"})
        kernel = await until_kernel()
        assert (kernel.owner.application, kernel.owner.can_adopt) == ("jupyter_server", False)
        server.send_signal(signal.SIGKILL)
        await server.wait()
    assert await asyncio.to_thread(wait_gone, kernel.pid, 60)
    roost.connect("local").close()


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_kill_a_kernel_gateway(
    short_owner_grace: float, settled_runtime_dir: Path, signum: signal.Signals
) -> None:
    pytest.importorskip("kernel_gateway", reason="Kernel Gateway is not installed: pip install '.[test]'")
    port = free_port()
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kernel_gateway", f"--port={port}", f"--KernelGatewayApp.auth_token={TOKEN}",
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await asyncio.to_thread(call, f"http://127.0.0.1:{port}/api/kernels", {"name": "python3"})
    kernel = await until_kernel()
    assert not kernel.owner.can_adopt
    gateway.send_signal(signum)
    await asyncio.wait_for(gateway.wait(), allow_s(60))
    assert await asyncio.to_thread(wait_gone, kernel.pid, 60)
    roost.connect("local").close()


async def test_kill_a_jupyter_server(
    short_owner_grace: float, settled_runtime_dir: Path, tmp_path: Path
) -> None:
    async with jupyter_server(tmp_path, has_extension=True) as (server, address):
        started = await asyncio.to_thread(call, f"{address}/api/kernels", {"name": "python3"})
        kernel = await until_kernel()
        assert kernel.id == started["id"]
        assert kernel.owner.can_adopt
        started_at = start_time(kernel.pid)
        server.send_signal(signal.SIGKILL)
        await server.wait()
    await until_owner_grace_is_over()
    assert is_running(kernel.pid, started_at)
    still = await roost.connect("local").kernel(kernel.id)
    assert (still.pid, still.state) == (kernel.pid, "running")
    await roost.connect("local").stop(kernel.id)
    assert not is_running(kernel.pid, started_at)
    roost.connect("local").close()


@pytest.mark.parametrize(
    "setting", ["allowed_users = ['ada']", "kernelspec_users = {'python3': {'denied': ['mallory']}}"]
)
async def test_a_user_that_is_not_allowed_gets_403(
    settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "jupyter_roost_config.py").write_text(f"c.RoostScheduler.{setting}\n")
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


async def test_a_server_stops_after_a_refused_start(settled_runtime_dir: Path, tmp_path: Path) -> None:
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
            assert await asyncio.wait_for(server.wait(), allow_s(60)) == 0
    finally:
        del os.environ["JUPYTER_PATH"]
    await none_is_left()
    roost.connect("local").close()
