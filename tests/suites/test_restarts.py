"""The restart of a kernel, seen by a client whose websocket stays open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from server import JupyterServer, jupyter_server

from kit.jupyter.front_end import errors, front_end, states, texts
from kit.jupyter.restarted_servers import EXTENSIONS, start
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s, until

FILL = "data = bytearray(400 << 20); data[::4096] = b'x' * len(data[::4096])"
DIE_ONCE = """
import os, pathlib, time
mark = pathlib.Path({mark!r})
if not mark.exists():
    mark.touch()
    time.sleep(3)
    os.kill(os.getpid(), 9)
"""
LATE_SUBSCRIPTIONS = """
import zmq
from jupyter_client.connect import ConnectionFileMixin

create = ConnectionFileMixin._create_connected_socket


def create_late(self, channel, *arguments, **options):
    if channel == "iopub":
        self.context.setsockopt(zmq.RECONNECT_IVL, 1_500)
        self.context.setsockopt(zmq.RECONNECT_IVL_MAX, 0)
    return create(self, channel, *arguments, **options)


ConnectionFileMixin._create_connected_socket = create_late
"""


@asynccontextmanager
async def serving_a_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> AsyncIterator[tuple[JupyterServer, str]]:
    """Start a server, and a kernel of `roosted` in it. Yield both, and delete the kernel at the end."""
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    extensions = f"--ServerApp.jpserver_extensions={EXTENSIONS}"
    async with jupyter_server(folder, options=(extensions, *options)) as server:
        kernel_id = await start(server, "roosted")
        yield server, kernel_id
        assert (await server.api("DELETE", f"kernels/{kernel_id}"))[0] == 204


@pytest.mark.backends("local", "ray")
async def test_the_first_cell_after_a_restart_has_its_output(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's output subscription connects late here, as it may with ZeroMQ. Requests connect at once."""
    specs_of()
    settings = tmp_path / "late_subscriptions.py"
    settings.write_text(LATE_SUBSCRIPTIONS)
    async with (
        serving_a_kernel(tmp_path, monkeypatch, f"--config={settings}") as (server, kernel_id),
        front_end(server, kernel_id, "client") as front,
    ):
        assert texts(await front.ended(await front.run("x = 41; print(x)"))) == "41\n"
        assert (await server.api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
        first, second = await front.run("print(42)"), await front.run("x")
        assert texts(await front.ended(first)) == "42\n"
        assert errors(await front.ended(second)) == ["name 'x' is not defined"]


@pytest.mark.backends("local", "ray")
async def test_the_cell_that_ran_shows_the_end_after_a_restart_too(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restart has left another cell without an answer."""
    specs_of()
    async with (
        serving_a_kernel(tmp_path, monkeypatch) as (server, kernel_id),
        front_end(server, kernel_id, "client") as front,
    ):
        long = await front.run("print('begun', flush=True); import time; time.sleep(60)")
        await front.until(lambda: texts(front.about(long)) == "begun\n")
        assert (await server.api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
        last = await front.run("import os; os._exit(7)")
        sentence = "The kernel exited with code 7."
        await front.until(lambda: sentence in errors(front.messages))
        assert (errors(front.about(last)), sentence in errors(front.about(long))) == ([sentence], False)


@pytest.mark.backends("local", "ray", "dask", "kubernetes")
async def test_a_kernel_that_runs_out_of_memory_again_is_not_started_again(
    specs_of: Callable[..., object], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs_of(config={"memory": "300MiB"})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    async with jupyter_server(tmp_path, options=(f"--ServerApp.jpserver_extensions={EXTENSIONS}",)) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            for restarts in (1, 0):
                request = await front.run(FILL)
                await front.until(lambda: errors(front.about(request)), 60)  # noqa: B023 - at once
                (sentence,) = errors(front.about(request))
                assert sentence.endswith("MiB of its 300 MiB of memory.")
                if restarts:
                    assert texts(await front.ended(await front.run("print(42)"))) == "42\n"
                    assert (await server.api("GET", f"kernels/{kernel_id}"))[1]["reason"] == sentence
            await front.until(lambda: "dead" in states(front.messages), 60)
        assert (await server.api("GET", f"kernels/{kernel_id}"))[0] == 404, "Jupyter removes a dead kernel"
    service = connect(backend)
    (kernel,) = service.kernels().result(allow_s(10))
    assert kernel.process is not None
    assert kernel.process.is_out_of_memory
    # A pod has the limit as a whole, and Kubernetes' own process in it (`pause`) uses some of it.
    others = 1 << 20 if backend == "kubernetes" else 0
    assert (300 << 20) - others <= kernel.process.peak_bytes <= 300 << 20
    service.stop(kernel.id).result(allow_s(20))


@pytest.mark.backends("local")
async def test_the_state_of_a_restarted_kernel_is_true(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reads a kernel's state from its output. After a restart it misses output until the kernel is idle."""
    specs_of()
    async with (
        serving_a_kernel(tmp_path, monkeypatch) as (server, kernel_id),
        front_end(server, kernel_id, "client") as front,
    ):
        await front.ended(await front.run("1"))
        before = (await server.api("GET", f"kernels/{kernel_id}"))[1]
        await front.run("import os; os.kill(os.getpid(), 9)")

        async def is_true() -> bool:
            shown = (await server.api("GET", f"kernels/{kernel_id}"))[1]
            is_new = shown["last_activity"] != before["last_activity"]  # it may be idle until it is restarted
            return bool(is_new and shown["execution_state"] == "idle" and "reason" in shown)

        await until(is_true, "the restarted kernel is idle, and its model has a reason", 60, 0.1)
        answer = await server.api("POST", f"kernels/{kernel_id}/restart", {})
        assert (answer[0], answer[1]["execution_state"]) == (200, "idle")


@pytest.mark.backends("local", "ray")
async def test_two_restarts_at_once_leave_one_kernel_that_answers(
    specs_of: Callable[..., object], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs_of()
    async with serving_a_kernel(tmp_path, monkeypatch) as (server, kernel_id):
        async with front_end(server, kernel_id, "first") as front:
            await front.ended(await front.run("1"))  # while a kernel starts, a restart only ends its cells
        for _ in range(3):
            restarts = [server.api("POST", f"kernels/{kernel_id}/restart", {}) for _ in range(2)]
            await asyncio.gather(*restarts)  # one of them is refused by 500, as with plain Jupyter
            (before,) = await connect(backend).kernels()
            # jupyter_client may leave the kernel ended. Nothing that lives may be taken for dead.
            assert (await server.api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
            async with front_end(server, kernel_id, "client") as front:
                pid = texts(await front.ended(await front.run("import os; print(os.getpid())")))
            (after,) = await connect(backend).kernels()
            assert int(pid) == after.pid != before.pid


@pytest.mark.backends("local")
@pytest.mark.parametrize("stays", [True, False])
async def test_a_kernel_that_ended_before_its_first_answer_is_reached_after_its_restart(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """Jupyter Server asks each kernel once for its info. All websockets wait for the answer, which is lost here."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "die_once.py").write_text(DIE_ONCE.format(mark=str(tmp_path / "mark")))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    specs_of()
    async with serving_a_kernel(tmp_path, monkeypatch) as (server, kernel_id):
        async with front_end(server, kernel_id, "first") as front:
            if stays:
                assert texts(await front.ended(await front.run("print(42)"))) == "42\n"
            else:
                await asyncio.sleep(3)
        async with front_end(server, kernel_id, "second") as front:
            assert texts(await front.ended(await front.run("print(43)"))) == "43\n"
