"""A front end without a browser: a kernel's websocket, the cells sent over it, and every message that comes back."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from server import JupyterServer
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from roost.testing.deadlines import allow_s

Message = dict[str, Any]


class FrontEnd:
    """A kernel's websocket. `messages` has all received messages in order, each with the time `at` of its arrival."""

    def __init__(self, socket: WebSocketClientConnection, session: str) -> None:
        self.messages: list[Message] = []
        self._socket = socket
        self._session = session
        self._arrived = asyncio.Event()

    async def read(self) -> None:
        while (raw := await self._socket.read_message()) is not None:
            self.messages.append({**json.loads(raw), "at": time.monotonic()})
            self._arrived.set()

    async def run(self, code: str, *, is_cell: bool = True) -> str:
        """Send code, as a notebook's cell or as a script does. Return the id of the request."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        return await self.send("execute_request", content, {"cellId": "a-cell"} if is_cell else {})

    async def send(self, kind: str, content: Message, metadata: Message | None = None) -> str:
        header = {
            "msg_id": uuid.uuid4().hex, "msg_type": kind, "version": "5.4", "session": self._session,
            "username": "ada", "date": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        message = {
            "header": header, "parent_header": {}, "metadata": metadata or {}, "content": content, "channel": "shell",
        }  # fmt: skip
        await self._socket.write_message(json.dumps(message))
        return str(header["msg_id"])

    async def until(self, is_met: Callable[[], Any], timeout_s: float = 180) -> None:
        """Wait until the condition is met, which is checked after each message."""
        deadline = time.monotonic() + allow_s(timeout_s)
        while not is_met():
            self._arrived.clear()
            rest_s = max(0.0, deadline - time.monotonic())
            try:
                await asyncio.wait_for(self._arrived.wait(), rest_s)
            except asyncio.TimeoutError:
                raise AssertionError(
                    f"not within {timeout_s} s; the last messages: {self.messages[-5:]}"
                ) from None

    async def ended(self, request: str, timeout_s: float = 180) -> list[Message]:
        """Wait for the reply and the idle status of a request, and return all its messages."""

        def has_ended() -> bool:
            found = {
                message["msg_type"]
                for message in self.about(request)
                if message["content"].get("execution_state", "idle") == "idle"
            }
            return {"execute_reply", "status"} <= found

        await self.until(has_ended, timeout_s)
        return self.about(request)

    def about(self, request: str) -> list[Message]:
        return [each for each in self.messages if (each["parent_header"] or {}).get("msg_id") == request]

    def line(self, request: str) -> str:
        """Return the text that the waiting cell shows; empty if it shows none."""
        text = ""
        for message in self.about(request):
            if message["msg_type"] in ("display_data", "update_display_data"):
                text = message["content"]["data"]["text/plain"]
            elif message["msg_type"] == "clear_output":
                text = ""
        return text


@asynccontextmanager
async def front_end(server: JupyterServer, kernel_id: str, session: str = "") -> AsyncIterator[FrontEnd]:
    """Open a kernel's websocket and read it. At the end it is closed."""
    session = session or uuid.uuid4().hex
    url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel_id}/channels?session_id={session}"
    request = HTTPRequest(url, headers={"Authorization": f"token {server.token}"}, request_timeout=60)
    socket = await websocket_connect(request)
    front = FrontEnd(socket, session)
    reading = asyncio.create_task(front.read())
    try:
        yield front
    finally:
        socket.close()
        reading.cancel()


def texts(messages: list[Message]) -> str:
    """Return the text that these messages of a cell have printed."""
    return "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")


def states(messages: list[Message]) -> list[str]:
    """Return the execution states that the messages report."""
    return [message["content"]["execution_state"] for message in messages if message["msg_type"] == "status"]


def errors(messages: list[Message]) -> list[str]:
    return [message["content"]["evalue"] for message in messages if message["msg_type"] == "error"]
