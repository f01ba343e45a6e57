"""Servers that end and come back, their clients, and the text that cells then show."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from server import JupyterServer, jupyter_server

from kit.jupyter.front_end import FrontEnd, Message
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s, until

_OTHERS = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook", "notebook_shim")
EXTENSIONS = {"roost": True, **dict.fromkeys(_OTHERS, False)}
"""The server extensions, on or off. Only roost's is on, so that a server starts in half the time."""


@asynccontextmanager
async def run_server(folder: Path, *options: str, within: Sequence[str] = ()) -> AsyncIterator[JupyterServer]:
    """Start a server with roost's extension. If the block fails, print its log. `within` is as in `jupyter_server`."""
    given = (f"--ServerApp.jpserver_extensions={EXTENSIONS}", *options)
    async with jupyter_server(folder, options=given, within=within) as server:
        try:
            yield server
        except BaseException:
            print("\n".join(server.log))
            raise


@asynccontextmanager
async def serving(
    folder: Path, *options: str, name: str = "ours", host: str = ""
) -> AsyncIterator[JupyterServer]:
    """Start a server that keeps its kernels. If the block fails, print its log.

    With a `host`, the server sees this name as its machine's name, as in a container. This needs root.
    """
    given = ["--RoostExtension.on_server_stop=keep"]
    if name:
        given.append(f"--RoostExtension.server_name={name}")
    within = ("unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh") if host else ()
    async with run_server(folder, *given, *options, within=within) as server:
        yield server


async def start(server: JupyterServer, name: str) -> str:
    """Start a kernel and return its id."""
    status, kernel = await server.api("POST", "kernels", {"name": name})
    assert status == 201, kernel
    return str(kernel["id"])


async def listed(server: JupyterServer) -> dict[str, str]:
    """Return the states of the server's kernels by their ids."""
    return {kernel["id"]: kernel["execution_state"] for kernel in (await server.api("GET", "kernels"))[1]}


async def end(server: JupyterServer, signum: int = signal.SIGKILL) -> None:
    """End a server by a signal, and wait until it has ended."""
    os.kill(server.pid, signum)
    status = Path(f"/proc/{server.pid}/stat")

    def has_ended() -> bool:
        try:
            return ") Z " in status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    await until(has_ended, f"the server {server.pid} ends", 20)


async def none_is_left() -> None:
    """Wait until this machine's scheduler has no kernel. A server may end before its last kernel has.

    The deadline comes before the scheduler itself ends the kernels of a server that has ended.
    """
    end = time.monotonic() + min(allow_s(2), 8)
    while left := await connect("local").kernels():
        assert time.monotonic() < end, left
        await asyncio.sleep(0.05)


def has_begun(front: FrontEnd, cell: str) -> bool:
    """True if the kernel has begun to run the cell."""
    return any(message["msg_type"] == "execute_input" for message in front.about(cell))


def shown(messages: list[Message]) -> str:
    """Return the text that a cell shows after these messages, as a notebook builds it."""
    pieces: list[str] = []
    for message in messages:
        kind, content = message["msg_type"], message["content"]
        if kind == "clear_output":
            pieces.clear()
        elif kind == "stream":
            pieces.append(content["text"])
        elif kind in ("display_data", "execute_result"):
            pieces.append(content["data"]["text/plain"] + "\n")
        elif kind == "error":
            pieces.append(f"{content['ename']}: {content['evalue']}\n")
    return "".join(pieces)


def replies(messages: list[Message]) -> list[str]:
    """Return the statuses of the replies to a cell."""
    return [message["content"]["status"] for message in messages if message["msg_type"] == "execute_reply"]
