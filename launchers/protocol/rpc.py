"""Calls and events over one ZeroMQ port, for the agent's protocol and for the service's protocol.

    RpcClient (DEALER) ── {"id", "op", "args"} ─────────────────────────────> RpcServer (ROUTER)
                       <─ {"id", "ok"} or {"id", "error": {"kind", "message", "fields"}} ──
                       <─ {"event"}, if the client has subscribed ────────────

Each message is one JSON object. The port is a TCP port with CURVE encryption, or a Unix socket in a private folder. A
client without an allowed key gets no answer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

MOST_BYTES = 8 << 20
"""A message has at most this many bytes. ZeroMQ ends a connection that brings a larger one."""
MOST_SOCKETS = 65_535
"""The most sockets that ZeroMQ allows in a context. The default is 1,023."""

_pack = json.JSONEncoder(separators=(",", ":")).encode


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message, which has JSON values only."""
    return _pack(message).encode()


def set_limits(socket: Any) -> None:
    """Limit the size of messages, and have ZeroMQ notice within seconds that the other side is gone."""
    import zmq  # here, because `messages` must not need it

    socket.setsockopt(zmq.MAXMSGSIZE, MOST_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 8_000)


def describe_excess(what: str, size: int) -> str:
    """Return the sentence for a message that is too large to be sent."""
    return f"{what} has {size / 2**20:.1f} MiB, and {MOST_BYTES >> 20} MiB is the most: ask for less at once"


class RpcError(Exception):
    """The base class of the errors that a call raises, apart from `asyncio.TimeoutError`."""


class Disconnected(RpcError):
    """The connection was lost, or there is no server. Make another connection and repeat the call."""


class Unauthorized(RpcError):
    """The server did not accept this client's key."""


class RemoteError(RpcError):
    """An error that a server sends as its answer: `kind` (a short word), `message` (a sentence) and `fields`."""

    def __init__(self, kind: str, message: str, fields: Mapping[str, Any] | None = None) -> None:
        self.kind, self.message, self.fields = kind, message, dict(fields or {})
        super().__init__(kind, message, self.fields)

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerKeys:
    """The CURVE keys of a server (Z85 text): its own pair, and the public keys of the clients it accepts."""

    public: str
    secret: str = dataclasses.field(repr=False)
    clients: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientKeys:
    """The CURVE keys of a client (Z85 text): its own pair, and the server's public key."""

    server: str
    public: str
    secret: str = dataclasses.field(repr=False)
