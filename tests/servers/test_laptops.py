"""A laptop's Jupyter Server and nbclient, whose kernels run behind `roost gateway`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from server import JupyterServer

from kit.jupyter.gateway_process import (
    a_laptop,
    add_token,
    gateway_folder,
    run_cell,
    serve,
    until_it_serves,
)
from kit.jupyter.restarted_servers import end, run_server
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s

CONFIG = "c.RoostGateway.max_kernels_per_user = 1"
REFUSED = "ada has 1 kernel, and max_kernels_per_user allows 1: end one first."
PROGRAM = """
import asyncio, nbformat
from nbclient import NotebookClient

cells = [nbformat.v4.new_code_cell("import os; print(6 * 7, os.environ['KERNEL_USERNAME'])")]
notebook = nbformat.v4.new_notebook(cells=cells)
manager = "roost.provisioners.gateway_client.GatewayKernelManager"
client = NotebookClient(notebook, kernel_name="roosted", kernel_manager_class=manager)
asyncio.run(client.async_execute())
print(notebook.cells[0].outputs[0].text)
"""


@pytest.fixture
def folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with gateway_folder(runtime_dir, tmp_path, monkeypatch) as made:
        yield made


@asynccontextmanager
async def behind_gateway(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JupyterServer]:
    """Run a gateway, and let new processes be on ada's laptop. Yield what sends requests to the gateway itself."""
    port, token = free_port(), await add_token("ada")
    async with serve(folder, port, more=CONFIG) as gateway:
        await until_it_serves(gateway, port)
        monkeypatch.setenv("JUPYTER_GATEWAY_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("JUPYTER_GATEWAY_AUTH_TOKEN", token)
        yield a_laptop(port, token)


@asynccontextmanager
async def laptop(folder: Path) -> AsyncIterator[JupyterServer]:
    notebooks = folder / "notebooks"
    notebooks.mkdir(exist_ok=True)
    async with run_server(notebooks, "--RoostExtension.server_name=laptop") as server:
        yield server


async def test_a_laptop_keeps_its_kernels_and_shows_the_gateways_sentences(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": {"name": "roosted"}}
    async with behind_gateway(folder, monkeypatch) as gateway:
        async with laptop(folder) as server:
            status, session = await server.api("POST", "sessions", body)
            assert status == 201, session
            kernel_id = session["kernel"]["id"]
            await run_cell(server, kernel_id, "x = 40")
            status, refused = await server.api("POST", "sessions", {**body, "path": "b.ipynb"})
            assert (status, refused["message"]) == (500, REFUSED)
            status, refused = await server.api("POST", "kernels", {"name": "roosted"})
            assert (status, refused["message"]) == (429, REFUSED)
            await end(server, signal.SIGKILL)
        for x in (41, 42):
            async with laptop(folder) as server:
                (found,) = (await server.api("GET", "sessions"))[1]
                assert (found["id"], found["kernel"]["id"]) == (session["id"], kernel_id)
                assert [each["id"] for each in (await server.api("GET", "kernels"))[1]] == [kernel_id]
                assert await run_cell(server, kernel_id, "x += 1; print(x)") == f"{x}\n"
        assert [each["id"] for each in (await gateway.api("GET", "kernels"))[1]] == [kernel_id]
        await gateway.api("DELETE", f"kernels/{kernel_id}")
        async with laptop(folder) as server:
            assert (await server.api("GET", "sessions"))[1] == []
            assert (await server.api("GET", "kernels"))[1] == []


async def test_nbclient_brings_its_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with behind_gateway(folder, monkeypatch) as gateway:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM), env=os.environ, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), allow_s(60))
        assert out.decode().strip() == "42 ada"
        assert (await gateway.api("GET", "kernels"))[1] == []
