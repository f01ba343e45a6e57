"""kill -9 of an application that has kernels: `jupyter execute`, which cannot come back, and a server, which can."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import nbformat
import pytest
from server import jupyter_server

import roost
from kit import TESTS
from kit.jupyter.restarted_servers import end, listed, start
from kit.machine.daemons import wait_gone
from roost.launchers.daemon.process import is_running, start_time
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import allow_s, until

pytestmark = [pytest.mark.usefixtures("roost_by_default")]

WITHOUT_EXTENSION = ("--ServerApp.jpserver_extensions={'roost': False}",)


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


async def test_kill_a_jupyter_server(
    short_owner_grace: float, settled_runtime_dir: Path, tmp_path: Path
) -> None:
    async with jupyter_server(tmp_path, options=WITHOUT_EXTENSION) as server:
        kernel_id = await start(server, "python3")
        kernel = await until_kernel()
        assert kernel.id == kernel_id
        assert kernel.owner.can_adopt
        started_at = start_time(kernel.pid)
        await end(server)
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
    async with jupyter_server(tmp_path, options=WITHOUT_EXTENSION) as server:
        status, answer = await server.api("POST", "kernels", {"name": "python3"})
        assert status == 403
        assert "mallory" in answer["message"]
        assert await listed(server) == {}
    roost.connect("local").close()
