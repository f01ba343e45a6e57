"""The port of the metrics: HTTP for any program of this machine, which may also be idle, slow or one of thousands.

Prometheus's own server bounds neither its connections nor the time of a request.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

REQUEST_S = 10.0
"""How long a connection may last, with its request and its answer."""
AT_ONCE = 32
"""At most this many connections are open, each with a thread. The oldest gives way to a new one."""
_LOOK_S = 0.5


@contextlib.contextmanager
def serve(listener: socket.socket, application: Callable[..., Any]) -> Iterator[None]:
    """Answer requests to `listener` by the WSGI application `application`, in threads. Closes the listener."""
    server = _Server(listener, application)
    thread = threading.Thread(target=server.serve_forever, args=(_LOOK_S,), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.close()


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Leave each scrape out of the log."""


class _Server(ThreadingMixIn, WSGIServer):
    """A server whose connections are few and short."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, application: Callable[..., Any]) -> None:
        super().__init__(("localhost", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()
        self.set_app(application)
        self._open: dict[socket.socket, float] = {}  # with the times of their beginnings, the oldest first
        self._lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return self.socket.accept()[0], ("localhost", 0)  # the peer of a Unix socket has no address
        except OSError:  # too many open files: `serve_forever` would ask again at once, without end
            time.sleep(_LOOK_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:  # each `_LOOK_S`, and after each new connection
        self._cut_off(AT_ONCE, REQUEST_S)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that has ended before its answer."""

    def close(self) -> None:
        self._cut_off(0, 0.0)
        self.server_close()

    def _cut_off(self, most: int, longest_s: float) -> None:
        """Cut off the oldest connections, so that at most `most` remain, of which none has lasted for `longest_s`."""
        with self._lock:
            ended_before = time.monotonic() - longest_s
            for request, began in list(self._open.items()):
                if len(self._open) <= most and began > ended_before:
                    break
                del self._open[request]
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)  # its thread ends
