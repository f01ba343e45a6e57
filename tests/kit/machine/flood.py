"""`Flood`: peers without a key that connect to a TCP port, in a process of their own.

    python -m kit.machine.flood PORT KIND PEERS RECONNECTS [SERVER_KEY]

A peer connects again as soon as its connection is closed, if RECONNECTS is 1. The program prints a line once each peer
has tried to connect, then one line for each line that it reads: how many connections it has opened.
"""

from __future__ import annotations

import errno
import random
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from roost.launchers.daemon.open_files import raise_limit

KINDS = ("idle", "slow", "garbage", "half", "large", "hello")
"""Peers that send nothing, a part of a greeting byte by byte, random bytes, a greeting and a part of a command, the
same with 8 MiB of it, or a greeting and a HELLO of CURVE.
"""

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
_HALF = GREETING + b"\x06" + (8 << 20).to_bytes(8, "big") + bytes(600)
_BYTE_S = 0.05
"""How long a slow peer waits before its next byte."""
_READY_S = 60.0


class Flood:
    """Peers of one kind at a port of 127.0.0.1, from `__enter__` to `__exit__`."""

    def __init__(
        self, port: int, kind: str, *, peers: int, reconnects: bool = True, server_key: str = ""
    ) -> None:
        self._arguments = [str(port), kind, str(peers), str(int(reconnects)), server_key]

    def __enter__(self) -> Flood:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kit.machine.flood", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def count(self) -> int:
        """Return how many connections the peers have opened so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


class _Peers:
    """The connections of the program, each with the bytes that it has not sent yet."""

    def __init__(self, port: int, build: Callable[[], bytes], *, is_slow: bool, reconnects: bool) -> None:
        self._address = ("127.0.0.1", port)
        self._build, self._is_slow, self._reconnects = build, is_slow, reconnects
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._unsent: dict[socket.socket, memoryview] = {}
        self._refused = 0
        self.opened = 0

    def open(self) -> None:
        peer = socket.socket()
        peer.setblocking(False)
        problem = peer.connect_ex(self._address)
        if problem not in (0, errno.EINPROGRESS):
            peer.close()
            self._refused += 1
            return
        self.opened += 1
        self._unsent[peer] = memoryview(self._build())
        events = selectors.EVENT_READ if self._is_slow else selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.register(peer, events)

    def run(self) -> None:
        last = time.monotonic()
        while True:
            for key, events in self._selector.select(_BYTE_S):
                if key.fileobj is sys.stdin:
                    if not sys.stdin.readline():
                        return
                    print(self.opened, flush=True)
                else:
                    self._step(key.fileobj, events)  # type: ignore[arg-type]
            again, self._refused = self._refused, 0
            for _ in range(again):
                self.open()
            if self._is_slow and time.monotonic() > last + _BYTE_S:
                last = time.monotonic()
                for peer in list(self._unsent):
                    self._send(peer, 1)

    def _step(self, peer: socket.socket, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send(peer, 65_536)
            if not self._unsent.get(peer, b"more"):
                self._selector.modify(peer, selectors.EVENT_READ)
        if events & selectors.EVENT_READ and peer in self._unsent:
            try:
                if peer.recv(65_536):
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            self._reopen(peer)

    def _send(self, peer: socket.socket, size: int) -> None:
        unsent = self._unsent[peer]
        try:
            self._unsent[peer] = unsent[peer.send(unsent[:size]) :] if unsent else unsent
        except BlockingIOError:
            pass
        except OSError as problem:
            if problem.errno != errno.ENOTCONN:
                self._reopen(peer)

    def _reopen(self, peer: socket.socket) -> None:
        self._selector.unregister(peer)
        del self._unsent[peer]
        peer.close()
        if self._reconnects:
            self.open()


def record_hello(server_key: str) -> bytes:
    """Return what a CURVE client sends before the server's WELCOME."""
    public, secret = zmq.curve_keypair()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with socket.create_server(("127.0.0.1", 0)) as server, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.curve_publickey, client.curve_secretkey = public, secret
        client.curve_serverkey = server_key.encode()
        client.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as reader:
            connection.sendall(GREETING[:32] + b"\1" + GREETING[33:])
            sent = reader.read(64 + 202)
    context.term()
    return sent


def main(port: str, kind: str, count: str, reconnects: str, server_key: str) -> None:
    """Run the program."""
    raise_limit()
    dice = random.Random(0)
    build: dict[str, Callable[[], bytes]] = {
        "idle": bytes,
        "slow": lambda: GREETING[: dice.randint(1, 63)],
        "garbage": lambda: dice.randbytes(dice.randint(1, 300)),
        "half": lambda: _HALF,
        "large": lambda: large,
        "hello": lambda: hello,
    }
    large = _HALF + bytes(8 << 20)
    hello = record_hello(server_key) if kind == "hello" else b""
    peers = _Peers(int(port), build[kind], is_slow=kind == "slow", reconnects=reconnects == "1")
    for _ in range(int(count)):
        peers.open()
    print(peers.opened, flush=True)
    peers.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
