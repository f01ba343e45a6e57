"""Sockets to a kernel's channels."""

from __future__ import annotations

import zmq

_MOST_WAITING = 100
"""How many messages wait at most until the agent reads them. Messages may be long, and they are no part of the journal.

Further messages wait in TCP's buffers of some megabytes, and then in the kernel, which keeps a thousand by default.
"""


def subscribe(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, public: str | None, secret: str | None
) -> zmq.Socket[bytes]:
    """Return a socket that receives all IOPub messages from now on.

    The keys are the kernel's CURVE keys, if any. Raises `ZMQError` or `ValueError` for an impossible endpoint or key.
    """
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, _MOST_WAITING)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    return connect(socket, endpoint, public, secret)


def connect(
    socket: zmq.Socket[bytes], endpoint: str, public: str | None, secret: str | None
) -> zmq.Socket[bytes]:
    """Connect a new socket to a channel and return it. After an error, it is closed. The rest is as in `subscribe`."""
    try:
        if public is not None and secret is not None:
            socket.curve_publickey = socket.curve_serverkey = public.encode()
            socket.curve_secretkey = secret.encode()
        if "[" in endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        socket.connect(endpoint)
    except BaseException:
        socket.close(linger=0)
        raise
    return socket
