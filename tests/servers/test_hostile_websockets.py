"""Bad frames reach a real Jupyter Server. Other clients and kernels notice nothing, and SIGTERM ends it."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from server import JupyterServer, jupyter_server
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

from kit.jupyter.client_messages import BAD_LEGACY, BAD_V1
from kit.jupyter.front_end import front_end, texts
from kit.jupyter.restarted_servers import EXTENSIONS, end, start
from roost.provisioners.server_extension.client_message import V1
from roost.testing.deadlines import allow_s

ANSWER_S = 60.0


async def send(
    server: JupyterServer, kernel_id: str, frame: str | bytes, subprotocol: str | None
) -> int | None:
    """Send a frame, and return the code with which the server closes the websocket; None if it stays open."""
    url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel_id}/channels?session_id={uuid.uuid4().hex}"
    request = HTTPRequest(url, headers={"Authorization": f"token {server.token}"}, request_timeout=ANSWER_S)
    socket = await websocket_connect(request, subprotocols=[subprotocol] if subprotocol else None)
    try:
        with suppress(WebSocketClosedError):
            await socket.write_message(frame, binary=isinstance(frame, bytes))
        with suppress(asyncio.TimeoutError):  # nothing comes any more
            while await asyncio.wait_for(socket.read_message(), ANSWER_S) is not None:
                pass
        return socket.close_code
    finally:
        socket.close()


async def answers(server: JupyterServer, kernel_id: str) -> None:
    async with front_end(server, kernel_id) as front:
        assert texts(await front.ended(await front.run("print(6 * 7)"), ANSWER_S)) == "42\n"


@asynccontextmanager
async def hostile_server(folder: Path) -> AsyncIterator[JupyterServer]:
    """A server that may close the websockets of the test's clients. At the end, SIGTERM ends it."""
    async with jupyter_server(folder, options=(f"--ServerApp.jpserver_extensions={EXTENSIONS}",)) as server:
        try:
            yield server
        except BaseException:
            print("\n".join(server.log))
            raise
        await asyncio.wait_for(end(server, signal.SIGTERM), allow_s(ANSWER_S))


async def test_a_frame_that_is_no_message_hurts_its_sender_alone(one_gpu: Path) -> None:
    async with hostile_server(one_gpu) as server:
        kernels = [await start(server, name) for name in ("gpu", "plain")]
        for kernel_id in kernels:
            for bad, subprotocol in ((BAD_V1["2^40 offsets"], V1), (BAD_LEGACY["2^31 offsets"], None)):
                assert await send(server, kernel_id, bad, subprotocol) == 1007
                await asyncio.gather(*(answers(server, each) for each in kernels))
        for all_bad, subprotocol in ((BAD_V1, V1), (BAD_LEGACY, None)):
            for what, bad in all_bad.items():
                assert await send(server, kernels[0], bad, subprotocol) == 1007, what
        await answers(server, kernels[0])


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_bad_frames_for_a_waiting_kernel_cost_no_cell_of_others(
    one_gpu: Path, is_deleted: bool
) -> None:
    async with hostile_server(one_gpu) as server:
        holder, waiting = await start(server, "gpu"), await start(server, "gpu")
        async with front_end(server, waiting) as front:
            for all_bad, subprotocol in ((BAD_V1, V1), (BAD_LEGACY, None)):
                bad = [
                    all_bad[what]
                    for what in ("other channel", "garbage as header", "header in the header")
                    if what in all_bad
                ]
                for frame in [*bad, *list(all_bad.values())[:5]]:
                    assert await send(server, waiting, frame, subprotocol) == 1007
            cell = await front.run("print('ran')")
            await front.until(lambda: front.line(cell), ANSWER_S)
            await server.api("DELETE", f"kernels/{waiting if is_deleted else holder}")
            ended = await front.ended(cell, ANSWER_S)
            assert texts(ended) == ("" if is_deleted else "ran\n")
