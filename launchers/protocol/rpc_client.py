"""The client's side of `rpc`. When the connection is lost, make another client and repeat the call."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from roost.launchers.daemon.tasks import cancel_all, join_shared, spawn
from roost.placement.model.json_codec import encode_message

from .rpc import (
    MOST_BYTES,
    MOST_SOCKETS,
    ClientKeys,
    Disconnected,
    RemoteError,
    RpcError,
    Unauthorized,
    describe_excess,
    pack,
    set_limits,
)

log = logging.getLogger(__name__)

_NEVER_MS = 24 * 3600 * 1000
"""How long ZeroMQ waits before it connects a lost connection again: roost makes another client instead.

Each attempt adds an event to the monitor's queue, which nobody reads after the loss. A full queue stops
ZeroMQ's thread. The value -1 (never) would drop messages that are still unread.
"""


class RpcClient:
    """One connection to an `RpcServer`, on the event loop that called `connect`.

    `on_event` gets each event. `on_lost` is called once when the connection is lost, but not after `close`.
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
        self._pending: dict[int, asyncio.Future[Any]] = {}  # 0: the connection itself
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_lost = False

    async def connect(self, *, timeout_s: float) -> None:
        """Connect and wait for the handshake. Raises `Disconnected` or `Unauthorized`."""
        self._socket = socket = _share_context(os.getpid()).socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        set_limits(socket)
        if self._keys is not None:
            socket.curve_secretkey = self._keys.secret.encode()
            socket.curve_publickey = self._keys.public.encode()
            socket.curve_serverkey = self._keys.server.encode()
        connected = self._pending[0] = asyncio.get_running_loop().create_future()
        self._monitor = socket.get_monitor_socket()
        spawn(self._watch(self._monitor), self._tasks, log)
        spawn(self._read(), self._tasks, log)
        socket.connect(self._endpoint)
        try:
            await asyncio.wait_for(join_shared(connected), timeout_s)
        except BaseException as problem:
            await self.close()
            if isinstance(problem, asyncio.TimeoutError):
                raise Disconnected(f"no answer from {self._endpoint} within {timeout_s:g} s") from None
            raise

    async def call(self, op: str, arguments: Any = None, *, timeout_s: float) -> Any:
        """Call `op` and return its JSON result. Raises `RemoteError`, `Disconnected`, `asyncio.TimeoutError`.

        A call of more than `MOST_BYTES` is not sent, and raises a `RemoteError` of kind too_large.
        """
        if self.is_lost:
            raise Disconnected("the connection was lost")
        number = next(self._numbers)
        payload = pack({"id": number, "op": op, "args": encode_message(arguments or {})})
        if len(payload) > MOST_BYTES:
            raise RemoteError("too_large", describe_excess(f"the call {op!r}", len(payload)))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        sent = self._socket.send(payload)
        assert isinstance(sent, asyncio.Future)  # it is done, unless the server has not read for long
        try:
            return await asyncio.wait_for(future, timeout_s)
        finally:
            sent.cancel()  # or a server that reads again would get a call that nobody waits for
            self._pending.pop(number, None)

    async def close(self) -> None:
        """Close the connection. Calls in progress raise `Disconnected`. May be repeated."""
        self._lose(Disconnected("the connection was closed"))
        self._on_lost = None
        await cancel_all(self._tasks)
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
            self._monitor.close(linger=0)

    async def _read(self) -> None:
        try:
            while True:
                message = json.loads(await self._socket.recv())
                if "event" not in message:
                    self._settle(message)
                elif self._on_event is not None:
                    self._deliver(message["event"], self._on_event)
        except Exception:
            log.exception("a message from %s cannot be read", self._endpoint)
        finally:
            self._lose(Disconnected(f"the connection to {self._endpoint} was lost"))

    def _deliver(self, event: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> None:
        try:
            on_event(event)
        except Exception:
            log.exception("an event from %s cannot be handled", self._endpoint)

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
                self._settle({"id": 0})
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
        for future in self._pending.values():
            if not future.done():
                future.set_exception(problem)
                future.exception()  # marks it as retrieved: its caller may have timed out
        if self._on_lost is not None:
            self._on_lost()


@functools.cache
def _share_context(pid: int) -> zmq.asyncio.Context:
    """Return the ZeroMQ context that all clients of the process `pid` share. A forked child gets its own.

    Each context has two threads and five descriptors. A connection has three sockets.
    """
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, MOST_SOCKETS)
    return context
