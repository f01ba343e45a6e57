"""The port of the metrics: HTTP for any program of this machine, which may also be idle, slow or one of thousands.

    listener ──> connections without a request (few, seconds) ──> requests ──> eight threads ──> the application
                        the oldest gives way to a new one

All of it is beside the service's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

log = logging.getLogger(__name__)

REQUEST_S = 5.0
"""How long a connection may take for its whole request, and then for reading the whole answer."""
AT_ONCE = 8
"""At most this many requests are answered at the same time. Others wait."""
MOST_WAITING = 64
"""At most this many connections have sent no whole request, and at most this many requests wait."""
_REQUEST_BYTES = 16 << 10


@contextlib.contextmanager
def serve(listener: socket.socket, application: Callable[..., Any]) -> Iterator[None]:
    """Answer requests to `listener` by the WSGI application `application`, in threads. Closes the listener."""
    loop = asyncio.new_event_loop()
    port = _Port(application)
    stop = asyncio.Event()
    thread = threading.Thread(target=_run, args=(loop, port.run(listener, stop)), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, coroutine: Any) -> None:
    try:
        loop.run_until_complete(coroutine)
    finally:
        loop.close()


class _Port:
    """The open connections of the port."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="metrics")
        self._waiting: dict[asyncio.StreamWriter, None] = {}  # for a request, the oldest first
        self._requests = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        server = await asyncio.start_server(self._serve, sock=listener, limit=_REQUEST_BYTES)
        await stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._waiting[writer] = None
        if len(self._waiting) > MOST_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_S)
            self._waiting.pop(writer, None)
            if self._requests < AT_ONCE + MOST_WAITING:
                writer.write(await self._answer(request))
                await asyncio.wait_for(writer.drain(), REQUEST_S)
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), REQUEST_S)
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            pass  # it is too slow, too long, or gone
        finally:
            self._waiting.pop(writer, None)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, request: bytes) -> bytes:
        self._requests += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, _answer, self._application, request)
        finally:
            self._requests -= 1


class _Handler(WSGIRequestHandler):
    """Answers a request that has arrived, without a connection."""

    def __init__(self, request: bytes, server: Any) -> None:
        self._request = request
        super().__init__(None, ("localhost", 0), server)  # type: ignore[arg-type]

    def setup(self) -> None:
        self.rfile, self.wfile = BytesIO(self._request), BytesIO()

    def finish(self) -> None:
        self.answer: bytes = self.wfile.getvalue()  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        """Leave each scrape out of the log."""


def _answer(application: Callable[..., Any], request: bytes) -> bytes:
    base = {
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "0",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REMOTE_HOST": "",
        "CONTENT_LENGTH": "",
        "SCRIPT_NAME": "",
    }
    return _Handler(request, SimpleNamespace(base_environ=base, get_app=lambda: application)).answer
