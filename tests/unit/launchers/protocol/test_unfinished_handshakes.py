"""Connections that never finish their handshake: a bounded number stays open, and nobody else is delayed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
import zmq

from roost.launchers.protocol.rpc import ClientKeys, ServerKeys
from roost.launchers.protocol.rpc_client import RpcClient
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.launchers.protocol.unfinished_handshakes import MOST, MOST_PER_PEER


@pytest.fixture
def idle() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def build_server() -> tuple[RpcServer, ClientKeys]:
    (public, secret), (client_public, client_secret) = (
        (key.decode() for key in zmq.curve_keypair()) for _ in range(2)
    )
    keys = ServerKeys(public=public, secret=secret, clients=frozenset([client_public]))
    server = RpcServer({"ping": Operation(lambda: "pong")}, keys=keys)
    return server, ClientKeys(server=public, public=client_public, secret=client_secret)


def count_open(port: int) -> int:
    """Return the number of connections that the server has open on this port."""
    return sum(
        each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
        for each in psutil.Process().net_connections("tcp")
    )


@pytest.mark.parametrize(("peers", "each", "most"), [(1, 300, MOST_PER_PEER), (15, 20, MOST)])
async def test_idle_connections_are_bounded(idle: ExitStack, peers: int, each: int, most: int) -> None:
    server, keys = build_server()
    port = int(server.start("tcp://127.0.0.1:*").rpartition(":")[2])
    early, late = RpcClient(server.endpoint, keys=keys), RpcClient(server.endpoint, keys=keys)
    try:
        await early.connect(timeout_s=60)
        for number in range(peers * each):
            source = (f"127.0.1.{1 + number % peers}", 0)
            address = ("127.0.0.1", port)
            idle.enter_context(socket.create_connection(address, timeout=5, source_address=source))
            await asyncio.sleep(0)
        for _ in range(1500):
            if most // 2 < (found := count_open(port)) <= most + 1:  # else some are not accepted yet
                break
            await asyncio.sleep(0.02)
        assert most // 2 < found <= most + 1
        await late.connect(timeout_s=60)
        for client in (early, late):
            assert await client.call("ping", timeout_s=60) == "pong"
    finally:
        for client in (early, late):
            await client.close()
        await server.close()
