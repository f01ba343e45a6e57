"""Passes the five channels of a kernel on: outside with roost's ports and keys, inside with the launcher's.

    clients ── ROUTER shell, control, stdin, heartbeat ── bridge ── DEALER ── kernel
            ── PUB iopub ──────────────────────────────── bridge ── SUB ───── kernel

Each message is checked with the key of the side from which it comes, and signed with that of the other side. A message
with a wrong signature is left out, as a kernel does. The identity of a client passes through. Inside, shell and stdin
share one identity: a kernel asks for input at the identity from which its request came.

A full channel is not read until its other side takes messages again. A thread does all this.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import zmq

from roost.launchers.protocol.kernel_message import UnreadableMessage, find_parts, read_header
from roost.launchers.protocol.shared_values import PORT_NAMES, Connection
from roost.launchers.protocol.signature import Signer

from .answer import Answer

_LINGER_MS = 1_000
"""How long the last messages may take to leave. ipykernel has the same time."""
_QUIET_MS = 50
"""After the kernel's end, the relay stops when no message has arrived for this time."""
_MOST_AT_ONCE = 100
"""How many messages of one direction pass before the others have their turn."""
_STOP = "inproc://stop"
_SHUTDOWN = "shutdown_request"

Socket = Any  # zmq.Socket[bytes]; its options are attributes


@dataclass(frozen=True, slots=True, eq=False)
class _Direction:
    """One direction of a channel. `incoming` and `outgoing` are None for the heartbeat, whose frames are not signed."""

    source: Socket
    target: Socket
    incoming: Signer | None
    outgoing: Signer | None
    is_request: bool = False


class PortTaken(Exception):
    """Another process has one of roost's ports. The text is a sentence."""


class Relay:
    """The channels between the clients and one kernel.

    The thread calls `on_shutdown` at each shutdown request, and `on_end` at its own end. Raises `PortTaken`.
    """

    def __init__(
        self,
        outside: Connection,
        inside: Answer,
        *,
        on_shutdown: Callable[[], object],
        on_end: Callable[[], object],
    ) -> None:
        self._outside = outside
        self._inside = inside
        self._on_shutdown = on_shutdown
        self._on_end = on_end
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.linger = _LINGER_MS
        self._stopping = self._context.socket(zmq.PAIR)
        self._stopping.bind(_STOP)
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.connect(_STOP)
        try:
            self._directions = list(self._open())
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pass the last messages on, then close all ports. Takes up to a second."""
        self._stop.send(b"")
        self._thread.join()
        self._stop.close()
        self._context.term()

    def _open(self) -> Iterator[_Direction]:
        """Open all sockets. Raises `PortTaken`."""
        outside = Signer(self._outside.key.encode(), self._outside.signature_scheme)
        inside = Signer(self._inside.key, self._inside.signature_scheme)
        identity = uuid.uuid4().hex.encode()
        # The subscription comes first: what the kernel publishes for the first request must not be missed.
        output = self._connect(zmq.SUB, "iopub_port")
        yield _Direction(output, self._bind(zmq.PUB, "iopub_port"), inside, outside)
        for name in PORT_NAMES:
            if name == "iopub_port":
                continue
            rear = self._connect(zmq.DEALER, name, identity if name in ("shell_port", "stdin_port") else None)
            front = self._bind(zmq.ROUTER, name)
            is_signed = name != "hb_port"
            signers = (outside, inside) if is_signed else (None, None)
            yield _Direction(front, rear, signers[0], signers[1], is_request=is_signed)
            yield _Direction(rear, front, signers[1], signers[0])

    def _bind(self, kind: int, name: str) -> Socket:
        """Open the socket of one of roost's ports. Raises `PortTaken`."""
        socket: Socket = self._context.socket(kind)
        connection = self._outside
        if kind == zmq.ROUTER:
            socket.router_handover = 1  # a client that comes back takes its identity over
        if connection.curve_publickey and connection.curve_secretkey:
            socket.curve_server = True
            socket.curve_publickey = connection.curve_publickey.encode()
            socket.curve_secretkey = connection.curve_secretkey.encode()
        port = getattr(connection, name)
        host = f"[{connection.ip}]" if ":" in connection.ip else connection.ip
        socket.ipv6 = ":" in connection.ip
        is_ipc = connection.transport == "ipc"
        address = f"ipc://{connection.ip}-{port}" if is_ipc else f"tcp://{host}:{port}"
        try:
            socket.bind(address)
        except zmq.ZMQError as problem:
            raise PortTaken(f"The bridge cannot listen on {address} ({name}): {problem}.") from None
        return socket

    def _connect(self, kind: int, name: str, identity: bytes | None = None) -> Socket:
        socket: Socket = self._context.socket(kind)
        if kind == zmq.SUB:
            socket.rcvhwm = 0  # a kernel drops output that its subscriber does not take
            socket.subscribe(b"")
        if identity is not None:
            socket.identity = identity
        if self._inside.curve_public is not None:
            socket.curve_serverkey = self._inside.curve_public
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(f"tcp://127.0.0.1:{self._inside.ports[name]}")
        return socket

    def _run(self) -> None:
        try:
            self._pass_all(None, ends=False)
            self._pass_all(_QUIET_MS, ends=True)
        finally:
            self._on_end()  # after an error, the relay would look like a kernel that hangs
            for direction in self._directions:
                direction.source.close()
                direction.target.close()
            self._stopping.close()

    def _pass_all(self, timeout_ms: int | None, *, ends: bool) -> None:
        """Pass messages on until `stop` is called, or (`ends`) until none has arrived for `timeout_ms`."""
        poller = zmq.Poller()
        if not ends:
            poller.register(self._stopping, zmq.POLLIN)
        for direction in self._directions:
            poller.register(direction.source, zmq.POLLIN)
        full: set[_Direction] = set()
        while True:
            ready = dict(poller.poll(timeout_ms))
            if not ready or self._stopping in ready:
                return
            for direction in self._directions:
                if direction in full and ready.get(direction.target, 0) & zmq.POLLOUT:
                    full.remove(direction)
                    poller.register(direction.target, zmq.POLLIN)
                    poller.register(direction.source, zmq.POLLIN)
                elif ready.get(direction.source, 0) & zmq.POLLIN and not self._pass_on(direction):
                    full.add(direction)
                    poller.register(direction.target, zmq.POLLIN | zmq.POLLOUT)
                    poller.unregister(direction.source)

    def _pass_on(self, direction: _Direction) -> bool:
        """Pass some messages on. Return False if the target is full."""
        with contextlib.suppress(zmq.Again):
            for _ in range(_MOST_AT_ONCE):
                if not direction.target.events & zmq.POLLOUT:
                    return False
                frames = direction.source.recv_multipart(zmq.NOBLOCK)
                if (signed := self._sign_again(direction, frames)) is not None:
                    direction.target.send_multipart(signed)
        return True

    def _sign_again(self, direction: _Direction, frames: list[bytes]) -> list[bytes] | None:
        """Return a message with the signature for the other side; None if its own signature is wrong."""
        if direction.incoming is None or direction.outgoing is None:
            return frames
        try:
            parts = find_parts(frames)
            kind = read_header(parts[0]).kind if direction.is_request else ""
        except UnreadableMessage:
            return None
        place = len(frames) - len(parts) - 1
        if not direction.incoming.is_right(frames[place], parts):
            return None
        if kind == _SHUTDOWN:
            self._on_shutdown()
        return [*frames[:place], direction.outgoing.sign(parts), *parts]
