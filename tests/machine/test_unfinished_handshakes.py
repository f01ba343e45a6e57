"""Connections without a finished handshake: they close while descriptors are short, and never delay a client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
import zmq

from kit.machine.flood import GREETING, Flood, record_hello
from roost.launchers.protocol import rpc_server
from roost.launchers.protocol.rpc import ClientKeys, ServerKeys
from roost.launchers.protocol.rpc_client import RpcClient
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.testing.deadlines import allow_s, until

FREE = 400
"""How many descriptors the server's process has in the tests with few of them."""


class Server:
    """A server, and connections of strangers to its port."""

    def __init__(self, rpc: RpcServer, keys: ClientKeys, strangers: ExitStack) -> None:
        self.rpc, self.keys, self._strangers = rpc, keys, strangers
        self.port = int(rpc.endpoint.rpartition(":")[2])

    def connect(self, sent: bytes = b"") -> socket.socket:
        peer = self._strangers.enter_context(
            socket.create_connection(("127.0.0.1", self.port), timeout=allow_s(10))
        )
        peer.sendall(sent)
        return peer

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[RpcClient]:
        client = RpcClient(self.rpc.endpoint, keys=self.keys)
        await client.connect(timeout_s=60)
        try:
            yield client
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def running_server() -> AsyncIterator[Server]:
    (public, secret), (client_public, client_secret) = (
        (key.decode() for key in zmq.curve_keypair()) for _ in range(2)
    )
    keys = ServerKeys(public=public, secret=secret, clients=frozenset([client_public]))
    rpc = RpcServer({"ping": Operation(lambda: "pong")}, keys=keys)
    rpc.start("tcp://127.0.0.1:*")
    with ExitStack() as strangers:
        yield Server(rpc, ClientKeys(server=public, public=client_public, secret=client_secret), strangers)
        await asyncio.wait_for(rpc.close(), allow_s(20))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server() as running:
        yield running


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = itertools.islice((number for number in itertools.count() if number not in used), FREE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def open_a_file() -> None:
    """Open a file. While the process has no descriptor, try again: the thread that closes connections may be late."""
    deadline = time.monotonic() + allow_s(2)
    while True:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.01)


def is_closed(peer: socket.socket) -> bool:
    """True if the server has closed this connection."""
    peer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while peer.recv(4096):
            pass
        return True
    return False


def read_to_the_end(peer: socket.socket) -> bool:
    """True if the server closes this connection before the timeout."""
    try:
        while peer.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("kind", ["idle", "hello"])
async def test_many_strangers_leave_descriptors(server: Server, few_descriptors: None, kind: str) -> None:
    async with server.client() as early:
        with Flood(server.port, kind, peers=2 * FREE, server_key=server.keys.server):
            for _ in range(10):
                await open_a_file()
                async with server.client() as late:
                    assert await late.call("ping", timeout_s=60) == "pong"
                await asyncio.sleep(0.05)
            assert await early.call("ping", timeout_s=60) == "pong"


async def test_a_finished_but_silent_client_stays_connected(server: Server, few_descriptors: None) -> None:
    async with server.client() as silent:
        with Flood(server.port, "half", peers=2 * FREE):
            await asyncio.sleep(1)
            assert await silent.call("ping", timeout_s=60) == "pong"


async def test_only_the_crowd_is_closed(few_descriptors: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "_HANDSHAKE_MS", 600_000)  # ZeroMQ itself closes none meanwhile
    async with running_server() as server:
        welcomed = server.connect(record_hello(server.keys.server))
        await asyncio.sleep(0.1)
        with Flood(server.port, "idle", peers=2 * FREE) as flood:
            await until(lambda: flood.count() > 2 * FREE + 20, "connections are closed", 20)
            assert not is_closed(welcomed)


async def test_strangers_stay_while_descriptors_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "_HANDSHAKE_MS", 600_000)
    async with running_server() as server:
        peers = [server.connect(sent) for sent in (b"", GREETING[:20], GREETING) for _ in range(8)]
        await asyncio.sleep(1)
        assert not any(map(is_closed, peers))
        async with server.client() as client:
            assert await client.call("ping", timeout_s=60) == "pong"


async def test_a_stranger_cannot_send_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit, each connection of a stranger takes the memory of the largest message."""
    monkeypatch.setattr(rpc_server, "_HANDSHAKE_MS", 600_000)
    command = GREETING + b"\x06" + (8 << 20).to_bytes(8, "big")
    async with running_server() as server:
        small, large = server.connect(command + bytes(600)), server.connect(command + bytes(100_000))
        large.settimeout(allow_s(60))
        assert await asyncio.to_thread(read_to_the_end, large)
        assert not is_closed(small)


async def test_a_server_ends_during_a_flood() -> None:
    async with running_server() as server:
        flood = Flood(server.port, "garbage", peers=200).__enter__()
        before = flood.count()
        await until(lambda: flood.count() > before, "more connections are opened", 20)
    flood.__exit__()
