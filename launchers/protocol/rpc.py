"""Calls and events over one ZeroMQ port: the protocol of the agent and of the scheduler service.

A server binds one ROUTER socket, over TCP with CURVE (clients without an allowed key get nothing) or
over a Unix socket in a private folder. A request is one JSON object `{"id", "op", "args"}`; the answer
`{"id", "ok"}` or `{"id", "error": {"kind", "message", "fields"}}`; an event `{"event"}`, pushed to peers
that subscribed. Arguments are validated against the handler's dataclass (`wire.decode`).

A client belongs to one event loop and one connection: once that is lost, every call in progress raises
`Disconnected` and the client is spent. Whoever holds it connects anew and, since all operations may be
repeated, calls again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils.monitor import parse_monitor_message

from .json_codec import WireError, decode, encode

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 8 << 20
HEARTBEAT_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 8_000
_ZAP_DOMAIN = b"roost"


class RpcError(Exception):
    """Root of what a call can raise besides `asyncio.TimeoutError`."""


class Disconnected(RpcError):
    """The peer is gone, or was never there: connect anew and repeat the call."""


class Unauthorized(RpcError):
    """The server did not accept this client's key."""


class RemoteError(RpcError):
    """The server answered with an error: `kind` (a short word), a sentence, and typed fields."""

    def __init__(self, kind: str, message: str, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__(kind, message, dict(fields or {}))
        self.kind = kind
        self.message = message
        self.fields = dict(fields or {})

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerKeys:
    """CURVE keys of a server (Z85 text): its own pair, and the public keys of those it lets in."""

    public: str
    secret: str = dataclasses.field(repr=False)
    clients: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientKeys:
    """CURVE keys of a client (Z85 text): its own pair, and the server's public key."""

    server: str
    public: str
    secret: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """What a server does for one `op`: the dataclass of its arguments, and the coroutine."""

    arguments: type
    handler: Callable[[bytes, Any], Awaitable[Any]]


class Server:
    """Answers calls and pushes events; one task per call, so that no call delays another.

    `operations` maps an op to its `Operation`; handlers get the peer's identity and the decoded arguments,
    and raise `RemoteError` for what the caller should be told.
    """

    def __init__(self, operations: Mapping[str, Operation], *, keys: ServerKeys | None = None) -> None:
        self._operations = operations
        self._keys = keys
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._subscribers: set[bytes] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._authenticator: AsyncioAuthenticator | None = None
        self.endpoint = ""

    def start(self, address: str) -> str:
        """Bind `address` (`tcp://127.0.0.1:*`, `ipc:///path`) and return the endpoint; raises `zmq.ZMQError`."""
        socket = self._socket
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
        socket.setsockopt(zmq.SNDHWM, 20_000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if self._keys is not None:
            self._require_keys(self._keys)
        socket.bind(address)
        self.endpoint = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
        self._loop_task = asyncio.get_running_loop().create_task(self._serve())
        return self.endpoint

    def _require_keys(self, keys: ServerKeys) -> None:
        self._authenticator = AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(_ZAP_DOMAIN.decode(), _Allowed(keys.clients))
        self._socket.curve_secretkey = keys.secret.encode()
        self._socket.curve_publickey = keys.public.encode()
        self._socket.curve_server = True
        self._socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)

    @property
    def subscriber_count(self) -> int:
        return len(self._subscribers)

    def subscribe(self, peer: bytes) -> None:
        """Push events to `peer` from now on, until it is gone."""
        self._subscribers.add(peer)

    def publish(self, event: Mapping[str, Any]) -> None:
        """Push one event to every subscriber; a subscriber that is gone or does not read is forgotten."""
        if not self._subscribers:
            return
        payload = json.dumps({"event": encode(event)}).encode()
        for peer in list(self._subscribers):
            if not self._send(peer, payload):
                self._subscribers.discard(peer)

    async def close(self) -> None:
        """Stop answering; calls in progress are cancelled."""
        tasks = [task for task in (self._loop_task, *self._tasks) if task is not None]
        current = asyncio.current_task()
        for task in tasks:
            if task is not current:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not current), return_exceptions=True)
        if self._authenticator is not None:
            self._authenticator.stop()
        self._socket.close(linger=200)
        self._context.term()

    async def _serve(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            if len(frames) != 2:
                log.warning("dropped a message of %d frames", len(frames))
                continue
            task = asyncio.get_running_loop().create_task(self._answer(frames[0], frames[1]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, peer: bytes, payload: bytes) -> None:
        number: Any = None
        try:
            request = json.loads(payload)
            number = request["id"]
            name, arguments = request["op"], request.get("args", {})
            operation = self._operations.get(name)
            if operation is None:
                raise RemoteError("unknown_operation", f"there is no operation {name!r:.60}")
            result = await operation.handler(peer, decode(operation.arguments, arguments))
            answer = {"id": number, "ok": encode(result)}
        except RemoteError as problem:
            answer = _failure(number, problem.kind, problem.message, problem.fields)
        except WireError as problem:
            answer = _failure(number, "bad_request", str(problem), {})
        except Exception as problem:
            if number is None:
                log.warning("dropped a message that is no request (%s)", type(problem).__name__)
                return
            log.exception("operation failed")
            answer = _failure(number, "internal", f"{type(problem).__name__}: {problem}", {})
        self._send(peer, json.dumps(answer).encode())

    def _send(self, peer: bytes, payload: bytes) -> bool:
        sent = self._socket.send_multipart([peer, payload], flags=zmq.NOBLOCK)
        assert isinstance(sent, asyncio.Future)  # and done: with NOBLOCK it is sent at once, or not at all
        problem = sent.exception()
        if problem is not None:
            log.debug("peer is gone: %s", problem)
        return problem is None


class Client:
    """One connection to a `Server`; use it from the event loop that called `connect`.

    What `on_event` raises is logged and harms nobody. `on_lost` is called once, unless `close` came first.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: ClientKeys | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._on_event = on_event
        self._on_lost = on_lost
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._connected: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.is_lost = False

    async def connect(self, *, timeout_s: float) -> None:
        """Connect and wait for the handshake; raises `Disconnected` or `Unauthorized`."""
        loop = asyncio.get_running_loop()
        self._context = zmq.asyncio.Context()
        self._socket = socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if self._keys is not None:
            socket.curve_secretkey = self._keys.secret.encode()
            socket.curve_publickey = self._keys.public.encode()
            socket.curve_serverkey = self._keys.server.encode()
        self._connected = loop.create_future()
        self._monitor = monitor = socket.get_monitor_socket()
        self._tasks = [loop.create_task(self._watch(monitor)), loop.create_task(self._read())]
        socket.connect(self._endpoint)
        try:
            await asyncio.wait_for(asyncio.shield(self._connected), timeout_s)
        except asyncio.TimeoutError:
            await self.close()
            raise Disconnected(f"nobody answered at {self._endpoint} within {timeout_s:g} s") from None
        except BaseException:
            await self.close()
            raise

    async def call(self, op: str, arguments: Any = None, *, timeout_s: float) -> Any:
        """Call `op` and return its JSON result; raises `RemoteError`, `Disconnected`, `asyncio.TimeoutError`."""
        if self.is_lost:
            raise Disconnected("the connection was lost")
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        payload = json.dumps({"id": number, "op": op, "args": encode(arguments or {})}).encode()
        sent = self._socket.send(payload)
        assert isinstance(sent, asyncio.Future)  # and done, unless the server has not read for long
        try:
            return await asyncio.wait_for(future, timeout_s)
        finally:
            sent.cancel()
            self._pending.pop(number, None)

    async def close(self) -> None:
        """Close the connection; calls in progress raise `Disconnected`. May be repeated."""
        self._lose(Disconnected("the connection was closed"))
        self._on_lost = None
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
            self._monitor.close(linger=0)
            self._context.term()

    async def _read(self) -> None:
        try:
            while True:
                message = json.loads(await self._socket.recv())
                if "event" in message:
                    self._tell(message["event"])
                else:
                    self._settle(message)
        except Exception:
            log.exception("what %s sends cannot be read", self._endpoint)
        finally:
            self._lose(Disconnected(f"the connection to {self._endpoint} was lost"))

    def _tell(self, event: dict[str, Any]) -> None:
        try:
            if self._on_event is not None:
                self._on_event(event)
        except Exception:
            log.exception("an event of %s was not understood", self._endpoint)

    def _settle(self, answer: dict[str, Any]) -> None:
        future = self._pending.get(answer["id"])
        if future is None or future.done():
            return
        error = answer.get("error")
        if error is None:
            future.set_result(answer.get("ok"))
        else:
            future.set_exception(RemoteError(error["kind"], error["message"], error.get("fields")))

    async def _watch(self, monitor: Any) -> None:
        refusals = {zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL}
        losses = {zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_CONNECT_RETRIED}
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                if self._connected is not None and not self._connected.done():
                    self._connected.set_result(None)
            elif event in refusals:
                self._lose(Unauthorized(f"the server at {self._endpoint} does not know this client's key"))
                return
            elif event in losses:
                self._lose(Disconnected(f"the connection to {self._endpoint} was lost"))
                return

    def _lose(self, problem: RpcError) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        if self._connected is not None and not self._connected.done():
            self._connected.set_exception(problem)
            self._connected.exception()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(problem)
        if self._on_lost is not None:
            self._on_lost()


class _Allowed:
    """The key check of pyzmq's authenticator: exactly the listed public keys."""

    def __init__(self, keys: frozenset[str]) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        return key.decode() in self._keys


def _failure(number: Any, kind: str, message: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": number, "error": {"kind": kind, "message": message, "fields": encode(fields)}}
