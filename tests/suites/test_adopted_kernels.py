"""Kernels outlive their Jupyter Server: the next server adopts them, and clients get all output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from server import JupyterServer

from kit.jupyter.front_end import FrontEnd, errors, front_end, texts
from kit.jupyter.notebook import SLEEP
from kit.jupyter.restarted_servers import end, listed, replies, serving, shown, start
from roost.scheduler.client.client import connect, disconnect
from roost.testing.deadlines import allow_s, until
from roost.testing.leftovers import private_runtime_dir

SECONDS = "import time\nfor i in range({0}):\n    print(i, flush=True)\n    time.sleep(0.1)"


@pytest.fixture
def notebooks(
    backend: str, specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Return a folder for notebooks. The kernels of a test end even if it fails."""
    specs_of()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    yield tmp_path
    end_kernels(backend)


def end_kernels(backend: str) -> None:
    service = connect(backend)
    for kernel in service.kernels().result(allow_s(60)):
        service.stop(kernel.id).result(allow_s(60))


async def until_logged(server: JupyterServer, text: str) -> None:
    """Wait until an ended server's last log line has this text."""
    await until(lambda: text in server.log[-1], lambda: f"the log ends with {text!r}: {server.log[-5:]}")


def count_to(number: int) -> str:
    return "".join(f"{i}\n" for i in range(number))


@pytest.mark.backends("local", "ray", "dask", "kubernetes", "yarn", "ssh")
async def test_a_server_that_comes_back_has_its_kernels_and_their_output(notebooks: Path) -> None:
    async with serving(notebooks) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            assert texts(await front.ended(await front.run("x = 41; print(x)"))) == "41\n"
            cell = await front.run(SECONDS.format(60))
            await front.until(lambda: "3\n" in texts(front.about(cell)))
            await end(server, signal.SIGKILL)
            before = front.messages
    async with serving(notebooks) as server:
        (model,) = (await server.api("GET", "kernels"))[1]
        assert (model["id"], model["name"]) == (kernel_id, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            front.messages[:0] = before
            ended = await front.ended(cell)
            assert shown(ended) == count_to(60)
            assert replies(ended) == ["ok"]
            cell = await front.run(SECONDS.format(10))
            await front.until(lambda: "3\n" in texts(front.about(cell)))
            await end(server, signal.SIGTERM)
            await until_logged(server, "1 kernel kept")
            before = front.messages
    async with serving(notebooks) as server:
        async with front_end(server, kernel_id, "client") as front:
            front.messages[:0] = before
            ended = await front.ended(cell)
            assert shown(ended) == count_to(10)
            assert replies(ended) == ["ok"]
            assert texts(await front.ended(await front.run("print(x + 1)"))) == "42\n"
            await _interrupt_and_restart(server, front, kernel_id)
        assert (await server.api("DELETE", f"kernels/{kernel_id}"))[0] == 204
        assert (await server.api("GET", "kernels"))[1] == []


@pytest.mark.backends("ray")
@pytest.mark.skipif(os.geteuid() != 0, reason="giving a server another host name needs root")
async def test_a_server_in_a_new_container_finds_its_kernels(
    notebooks: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterHub names the server. Each container of the server has another host name and an empty /tmp."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    with container(tmp_path_factory, monkeypatch):
        async with serving(notebooks, name="", host="pod-1") as server:
            kernel_id = await start(server, "roosted")
            async with front_end(server, kernel_id, "client") as front:
                cell = await front.run("x = 41\n" + SECONDS.format(40))
                await front.until(lambda: "3\n" in texts(front.about(cell)))
                await end(server)
    with container(tmp_path_factory, monkeypatch):
        async with serving(notebooks, name="", host="pod-2") as server:
            # A new service may need longer than the server's start waits.
            await until(partial(listed, server), "the server lists a kernel")
            assert (await listed(server)).keys() == {kernel_id}
            async with front_end(server, kernel_id, "client") as front:
                assert shown(await front.ended(cell)) == count_to(40)
                assert texts(await front.ended(await front.run("print(x + 1)"))) == "42\n"
            assert (await server.api("DELETE", f"kernels/{kernel_id}"))[0] == 204


@contextmanager
def container(folders: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the `with` block state and runtime folders of its own, like a container. Kill its service at the end."""
    patch.setenv("XDG_STATE_HOME", str(folders.mktemp("state")))
    with private_runtime_dir() as folder:
        try:
            yield
        except BaseException:
            end_kernels("ray")
            raise
        finally:
            disconnect()
            kill_services(Path(folder))


def kill_services(folder: Path) -> None:
    for file in folder.glob("scheduler-*/ready.json"):
        os.kill(int(json.loads(file.read_text())["pid"]), signal.SIGKILL)


async def _interrupt_and_restart(server: JupyterServer, front: FrontEnd, kernel_id: str) -> None:
    cell = await front.run(f"print(1, flush=True)\n{SLEEP}")
    await front.until(lambda: "1\n" in texts(front.about(cell)))
    await asyncio.sleep(allow_s(0.2))  # some kernels hang if they are interrupted while they still print
    assert (await server.api("POST", f"kernels/{kernel_id}/interrupt", {}))[0] == 204
    assert "KeyboardInterrupt" in shown(await front.ended(cell))
    assert (await server.api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
    assert errors(await front.ended(await front.run("x"))) == ["name 'x' is not defined"]
