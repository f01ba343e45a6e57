"""A private Jupyter Server, used as a front end uses it: REST for kernels, a WebSocket for the cells of each kernel.

This module does not know roost.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import secrets
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket as new_socket
from typing import Any

import psutil
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 60.0
CELL_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_SHOWN_LINES = 100
"""How many lines of the log the error of a server has that did not start."""

_SERVING = re.compile(r"http://127\.0\.0\.1:(\d+)/(?!api)")  # not the address of a gateway's API
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class CellFailed(Exception):
    """A cell raised an exception. The message is its traceback without colours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output of a cell. `kind` is stdout, stderr, a MIME type (`text/plain`, `image/png`), or error."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JupyterServer:
    """A running server."""

    pid: int
    port: int
    token: str
    log: list[str]

    @property
    def url(self) -> str:
        """The address for a browser, with the token."""
        return f"http://127.0.0.1:{self.port}/lab?token={self.token}"

    async def api(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send one REST request under /api. Return the status and the decoded answer (None if there is none)."""
        return await self._ask(method, f"api/{path}", body)

    async def get(self, path: str) -> tuple[int, Any]:
        """Send GET to any path. Return the status and the decoded JSON of the answer."""
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        request = HTTPRequest(
            f"http://127.0.0.1:{self.port}/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
            body=None if body is None else json.dumps(body),
            request_timeout=REQUEST_TIMEOUT_S,
        )
        response = await AsyncHTTPClient().fetch(request, raise_error=False)
        return response.code, json.loads(response.body) if response.body else None

    @asynccontextmanager
    async def channels(
        self, kernel_id: str, *, protocols: list[str] | None = None
    ) -> AsyncIterator[WebSocketClientConnection]:
        """Open the kernel's WebSocket, and close it at the end."""
        request = HTTPRequest(
            f"ws://127.0.0.1:{self.port}/api/kernels/{kernel_id}/channels?session_id={uuid.uuid4().hex}",
            headers={"Authorization": f"token {self.token}"},
            request_timeout=REQUEST_TIMEOUT_S,
        )
        socket = await websocket_connect(request, subprotocols=protocols)
        try:
            yield socket
        finally:
            socket.close()


async def execute(socket: WebSocketClientConnection, code: str) -> list[Output]:
    """Run one cell. Return its outputs in order; an error is the last one. Raise TimeoutError after a minute."""
    message_id = uuid.uuid4().hex
    header = {"msg_id": message_id, "msg_type": "execute_request", "version": "5.3", "session": "tour"}
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    request = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await socket.write_message(json.dumps(request))

    async def collect() -> list[Output]:
        outputs: list[Output] = []
        waits_for = {"reply", "idle"}  # they arrive on different channels, in either order
        while waits_for:
            raw = await socket.read_message()
            if raw is None:
                raise ConnectionError("the server closed the kernel's WebSocket")
            message = json.loads(raw)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, said = message["msg_type"], message["content"]
            if kind == "execute_reply":
                waits_for.discard("reply")
            elif kind == "status" and said["execution_state"] == "idle":
                waits_for.discard("idle")
            elif kind == "stream":
                outputs.append(Output(kind=said["name"], text=said["text"]))
            elif kind in ("execute_result", "display_data"):
                outputs.append(_richest(said["data"]))
            elif kind == "error":
                outputs.append(Output(kind="error", text=_ESCAPES.sub("", "\n".join(said["traceback"]))))
        return outputs

    return await asyncio.wait_for(collect(), CELL_TIMEOUT_S)


def _richest(data: dict[str, Any]) -> Output:
    """Return the data of the first MIME type except plain text. If that type is binary, the text is the plain text."""
    kind = next((mime for mime in data if mime != "text/plain"), "text/plain")
    return Output(kind=kind, text=str(data[kind] if kind.startswith("text/") else data.get("text/plain", "")))


async def run_notebook(server: JupyterServer, kernel_id: str, path: Path) -> list[tuple[str, list[Output]]]:
    """Run all code cells. Return (source, outputs) of each.

    Raise `CellFailed` if a cell raises an exception and has no tag `raises-exception`.
    """
    ran = []
    async with server.channels(kernel_id) as socket:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] != "code":
                continue
            source = "".join(cell["source"])
            outputs = await execute(socket, source)
            is_allowed = "raises-exception" in cell["metadata"].get("tags", ())
            if not is_allowed and any(output.kind == "error" for output in outputs):
                raise CellFailed(outputs[-1].text)
            ran.append((source, outputs))
    return ran


@asynccontextmanager
async def jupyter_server(
    notebooks: Path,
    *,
    program: str = "jupyter_server",
    options: Sequence[str] = (),
    port: int = 0,
    token: str = "",
    within: Sequence[str] = (),
    python: str = sys.executable,
) -> AsyncIterator[JupyterServer]:
    """Start a server (or `program="jupyterlab"`) that only this machine can reach, and stop it at the end.

    Without a port or a token, the server gets its own. It inherits this process's environment. `within` is a
    command that executes the server's command. `python` is the server's interpreter. Raise RuntimeError, with the
    last lines of its log, if the server ends before it serves or does not serve within a minute.
    """
    token = token or secrets.token_urlsafe(24)
    port = port or _choose_port()
    command = [
        *within,
        *(python, "-X", "faulthandler", "-m", program),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.open_browser=False"),
        *(f"--ServerApp.root_dir={notebooks}", *options),
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "JUPYTER_TOKEN": token},  # not an argument: everybody can read arguments
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C must not reach the server
    )
    assert process.stdout is not None
    log: list[str] = []
    found: int | None = None
    reader: asyncio.Task[int | None] | None = None
    try:
        with suppress(asyncio.TimeoutError):
            found = await asyncio.wait_for(_read(process.stdout, log, until_serving=True), START_TIMEOUT_S)
        if found is None:
            await _write_stacks(process, process.stdout, log)
            raise RuntimeError("the Jupyter Server did not start:\n" + "\n".join(log[-_SHOWN_LINES:]))
        reader = asyncio.create_task(_read(process.stdout, log))
        port = found or await _find_port(process.pid)
        server = JupyterServer(pid=process.pid, port=port, token=token, log=log)
        try:
            await until_it_listens(server, process)
        except ConnectionRefusedError as problem:
            lines = "\n".join(log[-_SHOWN_LINES:])
            raise RuntimeError(f"the Jupyter Server does not listen at its address:\n{lines}") from problem
        yield server
    finally:
        await _stop(process)
        if reader is not None:
            reader.cancel()


def _choose_port() -> int:
    """Return a free port that Linux gives to no connection.

    Jupyter Server would choose another one, and end if a connection took that port before the server listens.
    """
    for port in random.sample(range(20_000, 32_768), 100):
        with suppress(OSError), new_socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    return 0


async def _read(lines: asyncio.StreamReader, log: list[str], *, until_serving: bool = False) -> int | None:
    """Collect the server's log. With `until_serving`, return the port in it, or None if the server ends first.

    A server that chooses a port itself logs 0 before jupyter_server 2.20.
    """
    async for raw in lines:
        line = raw.decode(errors="replace").rstrip()
        log.append(line)
        if until_serving and (match := _SERVING.search(line)):
            return int(match[1])
    return None


async def _find_port(pid: int) -> int:
    """Wait until a process or one of its children listens, and return the port. Raise TimeoutError after a minute."""

    async def find() -> int:
        server = psutil.Process(pid)
        while True:
            for process in [server, *server.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):  # a child that has ended meanwhile
                    for socket in process.net_connections("tcp4"):
                        if socket.status == psutil.CONN_LISTEN:
                            return int(socket.laddr.port)
            await asyncio.sleep(0.02)

    return await asyncio.wait_for(find(), START_TIMEOUT_S)


async def until_it_listens(server: JupyterServer, process: asyncio.subprocess.Process) -> None:
    """Wait until the server answers. It logs its address a moment before it listens.

    Raise ConnectionRefusedError if its process has ended or if it does not listen within a minute.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            await server.api("GET", "status")
            return
        except ConnectionRefusedError:
            if process.returncode is not None or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def _write_stacks(
    process: asyncio.subprocess.Process, lines: asyncio.StreamReader, log: list[str]
) -> None:
    """Abort a server that hangs. Python then writes the stacks of its threads into the log."""
    if process.returncode is None:
        process.send_signal(signal.SIGABRT)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_read(lines, log), STOP_TIMEOUT_S)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
