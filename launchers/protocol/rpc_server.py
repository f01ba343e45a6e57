"""The server's side of `rpc`: it answers calls and pushes events."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import cancel_all, spawn
from roost.placement.model.json_codec import WireError, decode, decode_arguments, encode_message

from .rpc import MOST_BYTES, RemoteError, ServerKeys, describe_excess, pack, set_limits
from .unfinished_handshakes import UnfinishedHandshakes

log = logging.getLogger(__name__)

_ZAP_DOMAIN = b"roost"
_NO_DESCRIPTORS = (
    "roost's process on that machine may open no more files and connections: end some kernels there, or raise the "
    "limit of open files (`ulimit -n`)"
)
_HANDSHAKE_MS = 5_000
"""After which time ZeroMQ closes a connection whose handshake has not ended."""
_BACKLOG = 32
"""At most this many connections wait for their acceptance. The system has all others try again a second later.

A longer queue would let a crowd of strangers take descriptors faster than the server closes their connections.
"""
_MOST_CLIENTS = 1_000
"""At most this many clients stay admitted by `admit`. If there are more, the server forgets the oldest."""
_KEY_LENGTH = 40
"""How many characters a CURVE key has in Z85."""
CALLER: ContextVar[str] = ContextVar("CALLER")
"""The public key of the client that made the current call. Empty at a server without keys."""
PEER: ContextVar[bytes] = ContextVar("PEER", default=b"")
"""The connection of the current call, also in tasks that the call has started. Empty outside of calls."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """An operation of a server, which the function or coroutine `handler` carries out.

    The arguments of a call are the handler's parameters. If `message` is given, they are the fields of that
    dataclass, and the message is the handler's only parameter.
    """

    handler: Callable[..., Any]
    message: type | None = None

    async def answer(self, name: str, arguments: Any) -> Any:
        """Call the handler and return its result. Raises `WireError` if the arguments do not fit the handler."""
        if self.message is not None:
            result = self.handler(decode(self.message, arguments))
        else:
            result = self.handler(**decode_arguments(self.handler, arguments, name))
        return await result if inspect.isawaitable(result) else result


class RpcServer:
    """A server for calls and events. Each call has its own task, so that no call delays another.

    If an operation raises `RemoteError`, its caller receives the error. A peer that calls `subscribe` becomes
    one of the `subscribers`, which get all events until they disconnect. `accepts` returns True for the
    public key of a client that may connect. Without `accepts`, the clients in `keys` and the admitted clients
    may connect.
    """

    def __init__(
        self,
        operations: Mapping[str, Operation],
        *,
        keys: ServerKeys | None = None,
        accepts: Callable[[str], bool] | None = None,
        on_subscribed: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_subscribed = on_subscribed
        self._operations = {"subscribe": Operation(lambda: None), **operations}
        self._keys = keys
        self._admitted: dict[str, None] = {}
        self._accepts = accepts or self._is_client
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self.subscribers: set[bytes] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._authenticator: AsyncioAuthenticator | None = None
        self._handshakes: UnfinishedHandshakes | None = None
        self.endpoint = ""

    def start(self, *addresses: str) -> str:
        """Bind the first free address (`tcp://127.0.0.1:*`, `ipc:///path`) and return its endpoint.

        Raises `zmq.ZMQError` if none is free.
        """
        socket = self._socket
        socket.setsockopt(zmq.LINGER, 200)
        set_limits(socket)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.setsockopt(zmq.SNDHWM, 20_000)
        if addresses[0].startswith("tcp:"):
            socket.setsockopt(zmq.BACKLOG, _BACKLOG)
        if self._keys is not None:
            self._require_keys(self._keys)
        for address in addresses:
            try:
                socket.bind(address)
                if address.startswith("ipc://"):
                    os.chmod(address.removeprefix("ipc://"), 0o600)
                break
            except zmq.ZMQError as problem:
                if problem.errno != zmq.EADDRINUSE or address == addresses[-1]:
                    raise
        self.endpoint = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
        if self._keys is not None and self.endpoint.startswith("tcp:"):
            self._handshakes = UnfinishedHandshakes(socket)
        keep_running(self._serve, self._tasks, log, "the reading of calls")
        return self.endpoint

    def admit(self, client: str) -> None:
        """Also accept the client with the public key `client`. Raises `RemoteError` if that is no CURVE key."""
        if len(client) != _KEY_LENGTH or not client.isascii() or not client.isprintable():
            raise RemoteError("bad_request", "a client is admitted by its public key, 40 characters of Z85")
        self._admitted.pop(client, None)
        self._admitted[client] = None
        if len(self._admitted) > _MOST_CLIENTS:
            del self._admitted[next(iter(self._admitted))]

    def _is_client(self, key: str) -> bool:
        return key in self._admitted or (self._keys is not None and key in self._keys.clients)

    def _require_keys(self, keys: ServerKeys) -> None:
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        check = SimpleNamespace(callback=lambda domain, key: self._accepts(key.decode()))
        self._authenticator.configure_curve_callback(_ZAP_DOMAIN.decode(), check)
        self._socket.curve_secretkey = keys.secret.encode()
        self._socket.curve_publickey = keys.public.encode()
        self._socket.curve_server = True
        self._socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)

    def publish(self, event: object, *, but: bytes = b"") -> None:
        """Push an event to every subscriber but this one. Drop subscribers that have disconnected or do not read."""
        if not self.subscribers:
            return
        payload = pack({"event": encode_message(event)})
        if len(payload) > MOST_BYTES:
            log.error("an event is dropped: %s", describe_excess("it", len(payload)))
            return
        for peer in self.subscribers - {but}:
            if not self._send(peer, payload):
                self.subscribers.discard(peer)

    async def close(self) -> None:
        handshakes, self._handshakes = self._handshakes, None
        if handshakes is not None:
            handshakes.close()
        await cancel_all(self._tasks)  # without the task of an operation that closes the server
        if self._authenticator is not None:
            self._authenticator.stop()
        self._socket.close(linger=200)
        self._context.term()

    async def _serve(self) -> None:
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            if len(frames) != 2:
                log.warning("dropped a message of %d frames", len(frames))
                continue
            if self._handshakes is not None:
                self._handshakes.finish(frames[1].get(zmq.SRCFD))
            key = frames[1].get("User-Id") if self._keys is not None else ""
            spawn(self._answer(frames[0].bytes, frames[1].bytes, str(key)), self._tasks, log)

    async def _answer(self, peer: bytes, payload: bytes, key: str) -> None:
        CALLER.set(key)  # for this task and those that it starts
        PEER.set(peer)
        number: Any = None
        name = ""
        try:
            request = json.loads(payload)
            number = request["id"]
            name, arguments = request["op"], request.get("args", {})
            operation = self._operations.get(name)
            if operation is None:
                raise RemoteError("unknown_operation", f"there is no operation {name!r:.60}")
            answer = {"id": number, "ok": encode_message(await operation.answer(name, arguments))}
            if name == "subscribe":
                self.subscribers.add(peer)
                asyncio.get_running_loop().call_soon(self._on_subscribed)
        except RemoteError as problem:
            answer = _encode_failure(number, problem.kind, problem.message, problem.fields)
        except WireError as problem:
            answer = _encode_failure(number, "bad_request", str(problem), {})
        except Exception as problem:
            if number is None:
                log.warning("dropped a message that is no request (%s)", type(problem).__name__)
                return
            log.exception("operation failed")
            if getattr(problem, "errno", None) in (errno.EMFILE, errno.ENFILE):
                answer = _encode_failure(number, "no_descriptors", _NO_DESCRIPTORS, {})
            else:
                answer = _encode_failure(number, "internal", f"{type(problem).__name__}: {problem}", {})
        payload = pack(answer)
        if len(payload) > MOST_BYTES:
            excess = describe_excess(f"the answer to {name!r:.60}", len(payload))
            payload = pack(_encode_failure(number, "too_large", excess, {}))
        self._send(peer, payload)

    def _send(self, peer: bytes, payload: bytes) -> bool:
        sent = self._socket.send_multipart([peer, payload], flags=zmq.NOBLOCK)
        # The future is done: with NOBLOCK the message is sent at once or not at all.
        assert isinstance(sent, asyncio.Future)
        problem = sent.exception()
        if problem is not None:
            log.debug("a peer has disconnected: %s", problem)
        return problem is None


def _encode_failure(number: Any, kind: str, message: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": number, "error": {"kind": kind, "message": message, "fields": encode_message(fields)}}
