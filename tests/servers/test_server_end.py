"""The end of a server by SIGTERM: it ends whatever goes on in it, and leaves no half-written file."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pexpect
import pytest
from server import JupyterServer
from tornado.httpclient import HTTPError

from kit.clusters.faults import until
from kit.jupyter.front_end import front_end, texts
from kit.jupyter.restarted_servers import EXTENSIONS, end, none_is_left, run_server, start
from kit.machine.daemons import daemon_pids, wait_gone
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s

DEAF = """
import os, signal, time
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""
STUCK = """
import os
from roost.provisioners.server_extension import server_end
from anyio.to_thread import run_sync
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

class Manager(AsyncLargeFileManager):
    async def get(self, path, *arguments, **options):
        await run_sync(os.open, {fifo!r}, os.O_RDONLY)

server_end._FILES_S = 6.0
c.ServerApp.contents_manager_class = Manager
"""
STAYS = """
import asyncio
from anyio.to_thread import run_sync
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

tasks = []

async def stay(was_there):
    await run_sync(was_there.set)
    await asyncio.Event().wait()

class Manager(AsyncLargeFileManager):
    async def get(self, path, *arguments, **options):
        was_there = asyncio.Event()
        tasks.append(asyncio.create_task(stay(was_there)))
        await was_there.wait()
        return await super().get(path, *arguments, **options)

c.ServerApp.contents_manager_class = Manager
"""
pytestmark = pytest.mark.backends(
    "local", why="the end of the server is the same for kernels of all clusters"
)


@pytest.fixture(autouse=True)
def folders(specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the notebooks. Kernelspec `roosted` is in another one."""
    specs_of()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


class Saver:
    """A page that saves its notebook again and again on one connection, as a browser does."""

    def __init__(self, server: JupyterServer, name: str) -> None:
        cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}
        cells = [{**cell, "id": f"a{number}", "source": "1" * 2_000} for number in range(20)]
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        self.has_saved = threading.Event()
        self._address = f"/api/contents/{name}.ipynb"
        self._body = json.dumps({"type": "notebook", "content": notebook})
        self._server = server
        self.thread = threading.Thread(target=self._save)
        self.thread.start()

    def _save(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=allow_s(60))
        status = 200
        try:
            while status in (200, 201):
                for method, body in (("PUT", self._body), ("GET", None)):
                    headers = {"Authorization": f"token {self._server.token}"}
                    connection.request(method, self._address, body, headers)
                    answer = connection.getresponse()
                    answer.read()
                    status = answer.status
                self.has_saved.set()
        except (OSError, http.client.HTTPException):  # the server has ended
            pass
        finally:
            self.has_saved.set()
            connection.close()


@contextmanager
def saving(server: JupyterServer) -> Iterator[list[Saver]]:
    savers = [Saver(server, f"page{number}") for number in range(4)]
    try:
        yield savers
    finally:
        for saver in savers:
            saver.thread.join(allow_s(60))


@pytest.mark.parametrize(
    "round_", [*range(3), *(pytest.param(each, marks=pytest.mark.long) for each in range(3, 20))]
)
async def test_notebooks_that_are_saved_are_whole(folders: Path, round_: int) -> None:
    async with run_server(folders) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            assert texts(await front.ended(await front.run("print(42)"))) == "42\n"
        with saving(server) as savers:
            for saver in savers:
                await asyncio.to_thread(saver.has_saved.wait)
            await end(server, signal.SIGTERM)
    pages = [path for path in folders.iterdir() if path.is_file()]
    assert sorted(path.name for path in pages) == [f"page{number}.ipynb" for number in range(4)]
    assert [len(json.loads(path.read_text())["cells"]) for path in pages] == [20] * 4
    _, traceback, rest = "\n".join(server.log).partition("Traceback")
    assert not traceback, rest[-2_000:]


async def test_a_task_that_has_used_a_file_and_never_ends(folders: Path, tmp_path: Path) -> None:
    """Jupyter's extensions have such tasks: jupyter-collaboration's rooms, and open websockets."""
    settings = tmp_path / "settings.py"
    settings.write_text(STAYS)
    async with run_server(folders, f"--config={settings}") as server:
        assert (await server.api("GET", "contents/"))[0] == 200
        await end(server, signal.SIGTERM)


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]], ids=["int", "term twice"]
)
async def test_other_signals_end_the_kernels_too(folders: Path, signals: list[signal.Signals]) -> None:
    """This server has no terminal where it could ask."""
    async with run_server(folders) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            cell = await front.run("import os; print(os.getpid())")
            pid = int(texts(await front.ended(cell)))
        for signum in signals:
            os.kill(server.pid, signum)
            await asyncio.sleep(0.01)
        await end(server, signals[-1])
    assert wait_gone(pid)
    assert "Traceback" not in "\n".join(server.log)


async def start_deaf(server: JupyterServer) -> tuple[str, int]:
    """Start a kernel that ignores SIGINT and SIGTERM. Return its id and its pid."""
    kernel_id = await start(server, "roosted")
    async with front_end(server, kernel_id, "client") as front:
        cell = await front.run(DEAF)
        await front.until(lambda: texts(front.about(cell)))
        return kernel_id, int(texts(front.about(cell)))


async def test_a_restart_that_the_end_meets_starts_nothing(folders: Path) -> None:
    """The kernel ignores signals, so the restart takes as long as the server waits for kernels."""
    async with run_server(folders) as server:
        kernel_id, _ = await start_deaf(server)
        asking = asyncio.create_task(server.api("POST", f"kernels/{kernel_id}/restart", {}))
        await asyncio.sleep(2.5)
        await end(server, signal.SIGTERM)
        with suppress(OSError, HTTPError):
            await asking
    await none_is_left()


async def test_ctrl_c_twice(folders: Path) -> None:
    """Jupyter forgets a signal that meets it while it begins to listen, and it names its address before."""
    options = [f"--ServerApp.jpserver_extensions={EXTENSIONS}", "--no-browser", "--allow-root"]
    program = ["-m", "jupyter_server", f"--ServerApp.root_dir={folders}", *options]
    server = pexpect.spawn(sys.executable, program, timeout=allow_s(60))
    try:
        server.expect(r"http://127\.0\.0\.1:\d+/")
        url = f"{server.after.decode()}api"
        await until(lambda: urllib.request.urlopen(url, timeout=allow_s(10)), f"a server answers at {url}")
        server.sendintr()
        server.expect("Shut down this Jupyter server")
        server.sendintr()
        server.expect(pexpect.EOF)
        server.wait()
        assert server.exitstatus == 0
    finally:
        server.close(force=True)


async def test_a_kernel_that_ignores_every_signal_but_one(folders: Path) -> None:
    async with run_server(folders) as server:
        _, pid = await start_deaf(server)
        await end(server, signal.SIGTERM)
        await until_logged(server, "1 kernel is killed, because the server stops")
    assert wait_gone(pid)


async def test_a_service_that_does_not_answer(folders: Path, backend_runtime_dir: Path) -> None:
    async with run_server(folders) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            await front.ended(await front.run(""))
        (service,) = daemon_pids(backend_runtime_dir, "scheduler")
        os.kill(service, signal.SIGSTOP)
        try:
            await end(server, signal.SIGTERM)
        finally:
            os.kill(service, signal.SIGCONT)
        await until_logged(server, f"nothing answers for them: {kernel_id}")
    connect("local").stop(kernel_id).result(allow_s(60))


async def test_a_file_operation_that_is_stuck_is_reported(folders: Path, tmp_path: Path) -> None:
    """Nobody opens the other end of this fifo, so its opening takes as long as a network disk that is away."""
    fifo, settings = tmp_path / "fifo", tmp_path / "settings.py"
    os.mkfifo(fifo)
    settings.write_text(STUCK.format(fifo=str(fifo)))
    async with run_server(folders, f"--config={settings}") as server:
        asking = asyncio.create_task(server.api("GET", "contents/a.txt"))
        await until(lambda: is_opening(server.pid), "the server opens the file")
        os.kill(server.pid, signal.SIGTERM)
        await until_logged(server, "the server waits for 1 file operation")
        await until_logged(server, "the server stops before the end of 1 file operation")
        await until_logged(server, "ends when a file operation ends")
        assert not wait_gone(server.pid, 0)
        with fifo.open("w"):
            await end(server)
        with suppress(OSError, HTTPError):
            await asking


async def until_logged(server: JupyterServer, text: str) -> None:
    await until(lambda: any(text in line for line in server.log), f"the server logs: {text}")


def is_opening(pid: int) -> bool:
    """True if a thread of the process waits for the other end of a fifo."""
    return any("wait_for_partner" in task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/wchan"))
