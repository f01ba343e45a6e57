"""A bound on the TCP connections of a server that have not finished their handshake.

Anyone who reaches the port can open connections. ZeroMQ ends each after some seconds, but has no bound on their number.
This module ends the oldest ones, so that there are always descriptors for clients with the key.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

MOST = 200
"""At most this many connections have an unfinished handshake."""
MOST_PER_PEER = 32
"""At most this many unfinished handshakes come from one IP address."""

_HANDSHAKE_BYTES = 500
"""A client that has sent this many bytes has finished its handshake with CURVE.

It sends 64 bytes of greeting, 202 of HELLO, and at least 259 of INITIATE. Without the server's public key
nobody gets past HELLO.
"""
_RECEIVED = slice(128, 136)  # tcpi_bytes_received in `struct tcp_info` of Linux 4.1 and newer


class UnfinishedHandshakes:
    """The connections of one server's `socket`, from their acceptance to the end of their handshake."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED)
        self._peers: dict[int, str] = {}  # by descriptor, the oldest first

    async def watch(self) -> None:
        """Follow new connections, and end the oldest above the limits. Runs until it is cancelled."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            self._add(event["value"])

    def close(self) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close(linger=0)

    def _add(self, descriptor: int) -> None:
        peer = _find_unfinished_peer(descriptor)
        if peer is None:
            return
        self._peers.pop(descriptor, None)  # of an earlier connection
        self._peers[descriptor] = peer
        self._bound([each for each, other in self._peers.items() if other == peer], MOST_PER_PEER)
        self._bound(list(self._peers), MOST)

    def _bound(self, descriptors: list[int], most: int) -> None:
        if len(descriptors) <= most:
            return
        unfinished = []
        for descriptor in descriptors:
            if _find_unfinished_peer(descriptor) == self._peers[descriptor]:
                unfinished.append(descriptor)
            else:
                del self._peers[descriptor]
        for descriptor in unfinished[: max(0, len(unfinished) - most)]:
            del self._peers[descriptor]
            with contextlib.suppress(OSError), _borrow(descriptor) as connection:
                connection.shutdown(socket.SHUT_RDWR)  # ZeroMQ then closes it


def _find_unfinished_peer(descriptor: int) -> str | None:
    """Return the IP address of a connection with an unfinished handshake, and None for every other descriptor."""
    try:
        with _borrow(descriptor) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.stop)
            if (
                len(info) < _RECEIVED.stop
                or int.from_bytes(info[_RECEIVED], sys.byteorder) >= _HANDSHAKE_BYTES
            ):
                return None  # or the system does not count the bytes
            return str(connection.getpeername()[0])
    except OSError:  # closed, or by now a descriptor of something else
        return None


def _borrow(descriptor: int) -> socket.socket:
    """Return a copy of ZeroMQ's descriptor, to be closed by the caller. Raises `OSError`."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
