"""The unmodified launchers of Gateway Provisioners and Enterprise Gateway behind the bridge, with a real agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from kit.clusters.own_machines import kernel_pid
from kit.jupyter.notebook import Notebook
from kit.jupyter.odd_launcher import bridge_command
from kit.jupyter.real_launchers import KINDS, build_command, library, why_not
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s

pytestmark = [pytest.mark.backends("local", "yarn")]
Specs = Callable[..., object]


@pytest.fixture(params=KINDS)
def kept(
    request: pytest.FixtureRequest, specs_of: Specs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Install the kernelspec `roosted` with the bridge and a launcher. Return the launcher's kind."""
    if reason := why_not():
        pytest.skip(reason)
    env = {"PYTHONPATH": str(library()), "LOG_LEVEL": "10"}
    specs_of(argv=bridge_command(build_command(request.param)), env=env)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return str(request.param)


@asynccontextmanager
async def opened() -> AsyncIterator[Notebook]:
    notebook = Notebook("roosted")
    await notebook.open()
    try:
        yield notebook
    finally:
        await notebook.close()


async def test_start_run_ask_interrupt_restart_end(kept: str, backend: str) -> None:
    async with opened() as notebook:
        client, manager = notebook.client, notebook.manager
        assert manager.curve_publickey, "the channels outside are not encrypted"
        assert await notebook.value("6 * 7") == "42"
        assert await notebook.value("__import__('os').environ['KERNEL_ID']") == repr(manager.kernel_id)
        cell = client.execute("name = input('who? ')", allow_stdin=True)
        question = await client.get_stdin_msg(timeout=allow_s(60))
        assert question["content"]["prompt"] == "who? "
        client.input("ada")
        await client._async_recv_reply(cell, timeout=allow_s(60))
        assert await notebook.value("name") == "'ada'"
        await notebook.interrupt()
        assert await notebook.value("name") == "'ada'"
        await notebook.interrupt()  # the launcher's listener has survived the first one
        await notebook.restart()
        assert await notebook.value("'name' in globals()") == "False"
        service = connect(backend)
        log = await service.logs(manager.kernel_id)
        assert manager.session.key.decode() not in log
        assert "server_listener got request" in log, "the interrupt did not go through the launcher"
        bridge = psutil.Process(kernel_pid(manager.kernel_id))
        below = bridge.children(recursive=True)
        assert len(below) == 3, "a launcher, its listener, and the guard"
        assert all(manager.session.key.decode() not in " ".join(each.cmdline()) for each in [bridge, *below])
        await manager.shutdown_kernel()
        _, left = await asyncio.to_thread(psutil.wait_procs, [bridge, *below], timeout=allow_s(20))
        assert left == []


@pytest.mark.parametrize("kept", ["gateway"], indirect=True)
async def test_a_killed_bridge_leaves_nothing(kept: str, backend: str) -> None:
    async with opened() as notebook:
        bridge = psutil.Process(kernel_pid(notebook.manager.kernel_id))
        below = bridge.children(recursive=True)
        bridge.kill()
        reason = await notebook.ended(connect(backend), 60)
        assert "SIGKILL" in reason
        _, left = await asyncio.to_thread(psutil.wait_procs, [bridge, *below], timeout=allow_s(20))
        assert left == []
