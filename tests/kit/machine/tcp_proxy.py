"""A TCP proxy that can drop the data of open connections without closing them, as a broken network does."""

from __future__ import annotations

import contextlib
import socket
import threading

from roost.testing.deadlines import allow_s


class TcpProxy:
    """A proxy that forwards connections at `port` of 127.0.0.1 to a server, from entry to exit."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()

    def __enter__(self) -> TcpProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            _close(each)

    def swallow(self) -> int:
        """Drop all data of the open connections from now on, without closing them. Return their number."""
        self._silent |= self._sockets
        return len(self._silent) // 2

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._server, timeout=allow_s(5))
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._sockets |= {client, server}
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if source not in self._silent:
                    target.sendall(data)
        if source not in self._silent:
            _close(target)
        _close(source)
        self._sockets.discard(source)


def _close(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
