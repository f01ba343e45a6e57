"""Calls over real sockets: answers, events, lost connections, and clients without the key."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from roost.launchers.protocol import rpc_server
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentEvent, Holdings
from roost.launchers.protocol.rpc import ClientKeys, Disconnected, RemoteError, ServerKeys, Unauthorized
from roost.launchers.protocol.rpc_client import RpcClient
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.testing.deadlines import allow_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    a: int
    b: int


def key_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


SERVER, CLIENT = key_pair(), key_pair()
CLIENT_KEYS = ClientKeys(server=SERVER[0], public=CLIENT[0], secret=CLIENT[1])


@asynccontextmanager
async def serving(address: str = "tcp://127.0.0.1:*", **others: Operation) -> AsyncIterator[RpcServer]:
    async def add(request: Add) -> dict[str, int]:
        return {"sum": request.a + request.b}

    async def wait() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise RemoteError("conflict", "no", {"free": 1})

    operations = {
        "add": Operation(add, Add),
        "wait": Operation(wait),
        "fail": Operation(fail),
        **others,
    }
    keys = ServerKeys(public=SERVER[0], secret=SERVER[1], clients=frozenset([CLIENT[0]]))
    server = RpcServer(operations, keys=keys if address.startswith("tcp") else None)
    server.start(address)
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connected(server: RpcServer, **options: Any) -> AsyncIterator[RpcClient]:
    client = RpcClient(server.endpoint, keys=CLIENT_KEYS, **options)
    await client.connect(timeout_s=60)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def connected_to_a_socket(
    folder: Path, **options: Any
) -> AsyncIterator[tuple[RpcClient, zmq.asyncio.Socket]]:
    """Yield a client, which the caller closes, and the server's socket at `folder/s`, already connected."""
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as server:
        server.bind(f"ipc://{folder}/s")
        client = RpcClient(f"ipc://{folder}/s", **options)
        await client.connect(timeout_s=60)
        yield client, server


async def test_calls_errors_and_events() -> None:
    events: asyncio.Queue[Any] = asyncio.Queue()
    async with serving() as server, connected(server, on_event=events.put_nowait) as client:
        assert await client.call("add", {"a": 1, "b": 2}, timeout_s=60) == {"sum": 3}
        with pytest.raises(RemoteError) as failure:
            await client.call("fail", timeout_s=60)
        assert (failure.value.kind, failure.value.fields) == ("conflict", {"free": 1})
        for op, arguments, kind in [("add", {"a": 1}, "bad_request"), ("nope", {}, "unknown_operation")]:
            with pytest.raises(RemoteError) as failure:
                await client.call(op, arguments, timeout_s=60)
            assert failure.value.kind == kind
        server.publish({"before": "subscribing"})
        await client.call("subscribe", timeout_s=60)
        server.publish({"n": 1})
        assert await asyncio.wait_for(events.get(), allow_s(60)) == {"n": 1}


async def test_a_slow_call_delays_no_other_and_has_a_deadline() -> None:
    async with serving() as server, connected(server) as client:
        slow = asyncio.create_task(client.call("wait", timeout_s=0.3))
        assert await client.call("add", {"a": 1, "b": 1}, timeout_s=60) == {"sum": 2}
        with pytest.raises(asyncio.TimeoutError):
            await slow


async def test_calls_in_progress_end_when_the_server_closes() -> None:
    lost = asyncio.Event()
    async with serving() as server, connected(server, on_lost=lost.set) as client:
        call = asyncio.create_task(client.call("wait", timeout_s=30))
        await client.call("add", {"a": 1, "b": 1}, timeout_s=60)
        await server.close()
        with pytest.raises(Disconnected):
            await asyncio.wait_for(call, allow_s(60))
        await asyncio.wait_for(lost.wait(), allow_s(60))
        assert client.is_lost


async def test_an_error_in_an_event_handler_affects_no_call(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(event: dict[str, Any]) -> None:
        raise KeyError("new")

    async with serving() as server, connected(server, on_event=refuse) as client:
        await client.call("subscribe", timeout_s=60)
        server.publish({"n": 1})
        assert await client.call("add", {"a": 1, "b": 2}, timeout_s=60) == {"sum": 3}
        assert "cannot be handled" in caplog.text
        assert not client.is_lost


async def test_a_client_leaves_a_server_that_sends_invalid_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = asyncio.Event()
    async with connected_to_a_socket(tmp_path, on_lost=lost.set) as (client, server):
        server.linger = 0
        call = asyncio.create_task(client.call("wait", timeout_s=30))
        peer, _ = await server.recv_multipart()
        await server.send_multipart([peer, b"["])
        with pytest.raises(Disconnected):
            await asyncio.wait_for(call, allow_s(60))
        assert lost.is_set()
        assert "cannot be read" in caplog.text
        await client.close()


async def test_a_lost_client_that_nobody_closes_harms_no_other(tmp_path: Path) -> None:
    """A lost client must not reconnect: its monitor's queue would fill up and block ZeroMQ's thread."""
    lost = asyncio.Event()
    async with connected_to_a_socket(tmp_path, on_lost=lost.set) as (client, _):
        pass
    await asyncio.wait_for(lost.wait(), allow_s(60))
    path = tmp_path / "s"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        listener.settimeout(1)  # ZeroMQ's pause is 0.1 to 0.2 s
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(listener.accept)
    await client.close()


async def test_an_event_that_a_server_sends_as_it_leaves_arrives(tmp_path: Path) -> None:
    events: asyncio.Queue[Any] = asyncio.Queue()
    async with connected_to_a_socket(tmp_path, on_event=events.put_nowait) as (client, server):
        call = asyncio.create_task(client.call("wait", timeout_s=30))
        peer, _ = await server.recv_multipart()
        await server.send_multipart([peer, b'{"event": {"kind": "leaving"}}'])
    time.sleep(0.3)  # noqa: ASYNC251 - a busy client: the connection is lost before the event is read
    assert await asyncio.wait_for(events.get(), allow_s(60)) == {"kind": "leaving"}
    with pytest.raises(Disconnected):
        await call
    await client.close()


async def test_a_client_leaves_an_agent_that_takes_no_subscribers() -> None:
    async def refuse() -> None:
        raise RemoteError("conflict", "no")

    async with serving(subscribe=Operation(refuse)) as server:
        client = AgentClient(server.endpoint, CLIENT_KEYS)
        with pytest.raises(RemoteError):
            await client.connect()
        assert client._client.is_lost


async def test_unknown_fields_in_answers_and_events_are_ignored() -> None:
    events: asyncio.Queue[AgentEvent] = asyncio.Queue()

    def list_holdings() -> dict[str, Any]:
        return {"leases": [], "kernels": [], "new": {"a": 1}}

    async with serving(list=Operation(list_holdings)) as server:
        client = AgentClient(server.endpoint, CLIENT_KEYS, on_event=events.put_nowait)
        await client.connect()
        assert await client.holdings() == Holdings(leases=(), kernels=())
        server.publish({"kind": "leaving", "new": 1})
        assert (await asyncio.wait_for(events.get(), allow_s(60))).kind == "leaving"
        await client.close()


async def test_connecting_without_a_server(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        client = RpcClient(f"tcp://127.0.0.1:{held.getsockname()[1]}", keys=CLIENT_KEYS)
        with pytest.raises(Disconnected):
            await client.connect(timeout_s=60)
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(stale))
    with pytest.raises(Disconnected):
        await RpcClient(f"ipc://{stale}").connect(timeout_s=60)


async def test_a_client_that_is_admitted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "_MOST_CLIENTS", 2)
    monkeypatch.setattr(rpc_server, "_HANDSHAKE_MS", 60_000)
    pairs = [key_pair() for _ in range(3)]

    async def is_accepted(pair: tuple[str, str], server: RpcServer) -> bool:
        keys = ClientKeys(server=SERVER[0], public=pair[0], secret=pair[1])
        client = RpcClient(server.endpoint, keys=keys)
        try:
            await client.connect(timeout_s=60)
        except Unauthorized:
            return False
        await client.close()
        return True

    async with serving() as server, connected(server):
        assert not await is_accepted(pairs[0], server)
        for pair in pairs:
            server.admit(pair[0])
            assert await is_accepted(pair, server)
        assert [await is_accepted(pair, server) for pair in pairs] == [False, True, True], (
            "the first is forgotten"
        )
        assert await is_accepted(CLIENT, server), "the first clients stay"
        for text in ("", "x" * 39, "x" * 41, "\n" * 40, "ä" * 40):
            with pytest.raises(RemoteError, match="40 characters of Z85"):
                server.admit(text)


async def test_a_client_without_the_key_gets_no_answer_and_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc_server, "_HANDSHAKE_MS", 60_000)
    async with serving() as server, connected(server) as client:
        port = int(server.endpoint.rpartition(":")[2])
        public, secret = key_pair()
        stranger = ClientKeys(server=SERVER[0], public=public, secret=secret)
        wrong_server = ClientKeys(server=public, public=CLIENT[0], secret=CLIENT[1])
        with pytest.raises(Unauthorized):
            await RpcClient(server.endpoint, keys=stranger).connect(timeout_s=60)
        with pytest.raises((Unauthorized, Disconnected)):
            await RpcClient(server.endpoint, keys=wrong_server).connect(timeout_s=60)
        with pytest.raises((Unauthorized, Disconnected)):
            await RpcClient(server.endpoint).connect(timeout_s=1)
        raw = [socket.create_connection(("127.0.0.1", port), timeout=allow_s(5)) for _ in range(50)]  # idle
        for connection in raw[:25]:
            connection.sendall(os.urandom(4096))
        for connection in raw[:5]:
            connection.settimeout(5)
            greeting = bytearray()
            try:
                while chunk := connection.recv(4096):
                    greeting += chunk
            except OSError:
                pass
            assert len(greeting) <= 64  # ZMTP's greeting, which has no secrets, and no more
        assert await client.call("add", {"a": 2, "b": 2}, timeout_s=60) == {"sum": 4}
        for connection in raw:
            connection.close()


async def test_unix_sockets_need_no_keys(tmp_path: Path) -> None:
    async with serving(f"ipc://{tmp_path}/s") as server:
        client = RpcClient(server.endpoint)
        await client.connect(timeout_s=60)
        assert await client.call("add", {"a": 1, "b": 2}, timeout_s=60) == {"sum": 3}
        await client.close()


async def test_garbage_from_a_peer_with_a_key_is_dropped() -> None:
    async with serving() as server, connected(server) as client:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.curve_serverkey, dealer.curve_publickey = SERVER[0].encode(), CLIENT[0].encode()
            dealer.curve_secretkey = CLIENT[1].encode()
            dealer.connect(server.endpoint)
            for message in (b"", b"\xff\x00", b"[]", b"{}", b'{"id": {}}', b"[" * 100_000):
                dealer.send(message)
            dealer.send_multipart([b"a", b"b", b"c"])
            dealer.linger = 0
            assert await client.call("add", {"a": 2, "b": 2}, timeout_s=60) == {"sum": 4}


async def test_a_call_that_is_too_large_is_not_sent() -> None:
    async with serving() as server, connected(server) as client:
        with pytest.raises(
            RemoteError, match=r"the call 'add' has 9.0 MiB, and 8 MiB is the most"
        ) as refusal:
            await client.call("add", {"a": "x" * (9 << 20), "b": 1}, timeout_s=60)
        assert refusal.value.kind == "too_large"
        assert await client.call("add", {"a": 1, "b": 2}, timeout_s=60) == {"sum": 3}


async def test_an_answer_that_is_too_large_is_an_error() -> None:
    async with serving(much=Operation(lambda: "x" * (9 << 20))) as server, connected(server) as client:
        with pytest.raises(RemoteError, match=r"the answer to 'much' has 9.0 MiB"):
            await client.call("much", timeout_s=60)
        assert await client.call("add", {"a": 1, "b": 2}, timeout_s=60) == {"sum": 3}


async def test_a_process_without_free_descriptors_says_so() -> None:
    def open_one_more() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with serving(more=Operation(open_one_more)) as server, connected(server) as client:
        with pytest.raises(RemoteError, match="raise the limit of open files") as refusal:
            await client.call("more", timeout_s=60)
        assert refusal.value.kind == "no_descriptors"
