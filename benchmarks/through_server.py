"""Kernels through Jupyter Server, as a notebook uses them: a stock server with plain kernels against roost's.

Both servers run side by side, with the same extensions apart from roost's. One websocket stays open per kernel.

start       POST /api/kernels sent → websocket open → reply to a request that is sent then
round trip  a request sent → its reply, with no pause before the next (the median of ROUND_TRIPS)
restart     POST …/restart sent → answered → reply on the same websocket
server      a new server's process → first answer to a request
first       in a server that started PAGE_S ago: POST /api/sessions sent → result of a cell that is run at once
soonest     the same as soon as the server answers

Each sample of the last three has a server of its own, and for roost a new service and a new agent. A page of
JupyterLab takes longer than PAGE_S to load. Claims, of medians: start ≤ 0.17 ×, restart ≤ 0.2 ×, round trip ≤ 0.15 ×,
first ≤ 1 × plain; server ≤ 1.05 ×.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from claims import Report, interleave, parser
from page_tables import compare_with_plain
from tornado.websocket import WebSocketClientConnection

from roost.bench.world import PLAIN, ROOST, RUNTIME, elapsed_ms, end_processes, private_world

sys.path.append(str(Path(__file__).parents[1] / "docs/examples"))

from server import JupyterServer, jupyter_server

ROUND_TRIPS = 20
PAGE_S = 3.0
ANSWER_S = 60.0
REST_S = 0.4
"""The pause before each kernel. A zygote forks its spares only after a quiet time."""
PROTOCOL = "v1.kernel.websocket.jupyter.org"
TABLE = compare_with_plain(
    name="through_server",
    rows={
        "start (POST) → websocket → first reply": "start",
        "restart → reply on the same websocket": "restart",
        "one round trip on the websocket": "round trip",
        f"first kernel, {PAGE_S:g} s after the server's start → result of a cell": "first",
        "first kernel as soon as the server answers → result of a cell": "soonest",
        "the server's own start": "server",
    },
    plain="stock server, plain kernel",
    packages=("jupyter_server",),
)


class Notebook:
    """A kernel's websocket, in the protocol that JupyterLab speaks."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._session = uuid.uuid4().hex

    async def run(self, code: str, answer: str = "execute_reply") -> dict[str, Any]:
        """Run a cell. Return the content of its first message of type `answer`."""
        message_id = uuid.uuid4().hex
        header = {"msg_id": message_id, "msg_type": "execute_request", "version": "5.3", "username": "",
                  "session": self._session, "date": "2026-01-01T00:00:00Z"}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        await self._socket.write_message(encode([header, {}, {}, content]), binary=True)
        while True:
            raw = await asyncio.wait_for(self._socket.read_message(), ANSWER_S)
            if not isinstance(raw, bytes):
                raise ConnectionError("the server closed the kernel's websocket")
            own, parent, _, content = decode(raw)
            if parent.get("msg_id") == message_id and own["msg_type"] == answer:
                return content


def encode(parts: list[dict[str, Any]], channel: bytes = b"shell") -> bytes:
    """Return a message for the websocket: offsets, channel, and header, parent, metadata and content as JSON."""
    texts = [channel, *(json.dumps(part).encode() for part in parts)]
    offsets = [*itertools.accumulate(map(len, texts), initial=8 * (len(texts) + 2))]
    return b"".join(number.to_bytes(8, "little") for number in (len(offsets), *offsets)) + b"".join(texts)


def decode(raw: bytes) -> list[dict[str, Any]]:
    """Return header, parent, metadata and content of a message."""
    count = int.from_bytes(raw[:8], "little")
    offsets = [int.from_bytes(raw[8 * n : 8 * n + 8], "little") for n in range(1, count + 1)]
    return [json.loads(raw[offsets[n] : offsets[n + 1]]) for n in range(1, 5)]


@asynccontextmanager
async def open_server(name: str, folder: Path) -> AsyncIterator[JupyterServer]:
    """Run a server, with roost's extension if it is the server `roost`."""
    option = f"--ServerApp.jpserver_extensions=roost={name == 'roost'}"
    async with jupyter_server(folder, options=[option]) as server:
        yield server


@asynccontextmanager
async def open_notebook(server: JupyterServer, kernel_id: str) -> AsyncIterator[Notebook]:
    async with server.channels(kernel_id, protocols=[PROTOCOL]) as socket:
        yield Notebook(socket)


async def post(server: JupyterServer, path: str, body: object) -> Any:
    status, answer = await server.api("POST", path, body)
    if status not in (200, 201):
        raise RuntimeError(f"POST {path} was answered with {status}: {answer}")
    return answer


async def life(server: JupyterServer, name: str) -> dict[str, float]:
    """Use one kernel. Return milliseconds by stage."""
    await asyncio.sleep(REST_S)
    began = time.perf_counter()
    kernel = await post(server, "kernels", {"name": name})
    took = {"start: POST answered": elapsed_ms(began)}
    try:
        async with open_notebook(server, kernel["id"]) as notebook:
            took["start: websocket open"] = elapsed_ms(began)
            await notebook.run("1+1")
            took["start"] = elapsed_ms(began)
            trips = []
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter()
                await notebook.run("1+1")
                trips.append(elapsed_ms(began))
            took["round trip"] = statistics.median(trips)
            began = time.perf_counter()
            await post(server, f"kernels/{kernel['id']}/restart", {})
            took["restart: POST answered"] = elapsed_ms(began)
            await notebook.run("1+1")
            took["restart"] = elapsed_ms(began)
    finally:
        await server.api("DELETE", f"kernels/{kernel['id']}")
    return took


async def first_kernel(name: str, notebooks: Path, page_s: float) -> dict[str, float]:
    """Start a server, and its first kernel `page_s` later. Return milliseconds by stage."""
    before = os.environ[RUNTIME]
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as folder:
        os.environ[RUNTIME] = folder
        try:
            began = time.perf_counter()
            async with open_server(name, notebooks) as server:
                await answer_of(server)
                took = {"server": elapsed_ms(began)} if page_s else {}
                await asyncio.sleep(page_s)
                began = time.perf_counter()
                body = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": {"name": name}}
                session = await post(server, "sessions", body)
                async with open_notebook(server, session["kernel"]["id"]) as notebook:
                    await notebook.run("1+1", "execute_result")
                took["first" if page_s else "soonest"] = elapsed_ms(began)
        finally:
            os.environ[RUNTIME] = before
            end_processes(folder)
    return took


async def answer_of(server: JupyterServer) -> None:
    """Wait for the server's first answer. The server logs its port before it listens."""
    while True:
        with suppress(ConnectionRefusedError):
            if (await server.api("GET", "status"))[0] == 200:
                return
        await asyncio.sleep(0.005)


async def measure(arguments: Namespace, root: Path) -> Report:
    rounds = arguments.rounds or (3 if arguments.quick else 20)
    firsts = arguments.rounds or (2 if arguments.quick else 10)
    report = Report("through_server", rounds=rounds, firsts=firsts, round_trips=ROUND_TRIPS, page_s=PAGE_S)
    async with open_server("plain", root) as plain, open_server("roost", root) as roost:
        servers = {"plain": plain, "roost": roost}
        for name, server in servers.items():
            await answer_of(server)
            for _ in range(3):  # at first no zygote is warm
                await life(server, name)
        lives = {name: partial(life, server, name) for name, server in servers.items()}
        await interleave(report, lives, rounds=rounds)
    for page_s in (PAGE_S, 0.0):
        cases = {name: partial(first_kernel, name, root, page_s) for name in ("plain", "roost")}
        await interleave(report, cases, rounds=firsts)
    bounds: Mapping[str, float | None] = {
        "start": 0.17, "restart": 0.2, "round trip": 0.15, "first": 1.0, "soonest": None, "server": 1.05,
    }  # fmt: skip
    for stage, bound in bounds.items():
        report.ratio(f"{stage}: roost ÷ plain", f"{stage}/roost", f"{stage}/plain")
        if bound is not None:
            report.claim(f"{stage}: roost ÷ plain", at_most=bound)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--rounds",
        type=int,
        help="repetitions of each side (default 20, 10 for first kernels; quick 3 and 2)",
    )
    arguments = options.parse_args()
    with private_world({"plain": PLAIN, "roost": ROOST}) as root:
        notebooks = root / "notebooks"
        notebooks.mkdir()
        report = asyncio.run(measure(arguments, notebooks))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
