"""Connections to servers that are silent, broken or untrusted. The servers are stand-ins for Hadoop's."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from roost.scheduler.backends.yarn.master.hadoop_rpc import CallRefused, ConnectionLost, HadoopConnection
from roost.scheduler.backends.yarn.master.sasl import SaslError, answer_challenge
from roost.scheduler.backends.yarn.master.schema import (
    AllocateRequest,
    AllocateResponse,
    RpcResponseHeader,
    RpcSasl,
    SaslAuth,
    Token,
)
from roost.scheduler.backends.yarn.master.wire import decode, encode, frame, split
from roost.testing.deadlines import allow_s

TOKEN = Token(identifier=b"me", password=b"pw", kind="", service="")
CHALLENGE = b'realm="default",nonce="n",qop="auth",charset=utf-8,algorithm=md5-sess'
AUTH = SaslAuth(method="TOKEN", mechanism="DIGEST-MD5", protocol="", server_id="default", challenge=CHALLENGE)
_NEGOTIATE, _SUCCESS = 1, 0


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def receive(self) -> list[bytes]:
        """Return the parts of the next frame."""
        content = await self.reader.readexactly(int.from_bytes(await self.reader.readexactly(4), "big"))
        parts, at = [], 0
        while at < len(content):
            part, at = split(content, at)
            parts.append(part)
        return parts

    def send(self, *messages: Any) -> None:
        content = b"".join(frame(encode(message)) for message in messages)
        self.writer.write(len(content).to_bytes(4, "big") + content)

    async def log_in(self, *auths: SaslAuth, is_honest: bool = True) -> None:
        assert await self.reader.readexactly(7) == b"hrpc\x09\x00\xdf"
        await self.receive()
        self.send(RpcResponseHeader(call_id=0, status=0), RpcSasl(state=_NEGOTIATE, auths=auths or (AUTH,)))
        initiate = decode(RpcSasl, (await self.receive())[1])
        assert initiate.auths[0].challenge == b""
        (nonce,) = re.findall(rb'cnonce="(.*?)"', initiate.token)
        expected = answer_challenge(
            CHALLENGE,
            user=base64.b64encode(TOKEN.identifier).decode(),
            password=base64.b64encode(TOKEN.password if is_honest else b"guessed").decode(),
            uri="/default",
            client_nonce=nonce.decode(),
        ).expected
        self.send(RpcResponseHeader(call_id=0, status=0), RpcSasl(state=_SUCCESS, token=expected))
        if is_honest:
            await self.receive()  # the context


@asynccontextmanager
async def server(behave: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[HadoopConnection]:
    """Run a server that calls `behave` for each client, and yield a connection to the server."""

    peers: list[asyncio.Task[None]] = []

    async def run(peer: Peer) -> None:
        try:
            await behave(peer)
        finally:
            peer.writer.close()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(asyncio.ensure_future(run(Peer(reader, writer))))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with HadoopConnection("127.0.0.1", port, protocol="p", token=TOKEN) as connection:
        try:
            yield connection
        finally:
            connection.close()
            listener.close()
            await listener.wait_closed()
            await asyncio.wait_for(asyncio.gather(*peers, return_exceptions=True), allow_s(60))


async def call(connection: HadoopConnection, timeout_s: float = 5.0) -> AllocateResponse:
    return await connection.call(
        "allocate", AllocateRequest(response_id=1), AllocateResponse, timeout_s=timeout_s
    )


async def test_calls_and_refusals() -> None:
    """A refused call leaves the connection as it is. Answers to other calls are skipped."""

    async def behave(peer: Peer) -> None:
        await peer.log_in()
        await peer.receive()
        peer.send(
            RpcResponseHeader(call_id=0, status=1, exception_class_name="a.b.Bad", error_msg="no\n\tat X")
        )
        await peer.receive()
        peer.send(RpcResponseHeader(call_id=99, status=0), AllocateResponse(response_id=4))
        peer.send(RpcResponseHeader(call_id=1, status=0), AllocateResponse(response_id=5))
        await peer.reader.read()

    async with server(behave) as connection:
        with pytest.raises(CallRefused, match="Bad: no") as caught:
            await call(connection)
        assert (caught.value.name, str(caught.value)) == ("Bad", "Bad: no")
        assert (await call(connection)).response_id == 5


async def test_a_server_that_does_not_know_the_token() -> None:
    async with server(lambda peer: peer.log_in(is_honest=False)) as connection:
        with pytest.raises(SaslError, match="prove"):
            await call(connection)


@pytest.mark.parametrize(
    "auths", [(SaslAuth(method="SIMPLE", mechanism=""),), (SaslAuth(method="TOKEN", mechanism="SCRAM"),)]
)
async def test_a_server_without_a_known_login(auths: tuple[SaslAuth, ...]) -> None:
    """The master refuses a server that offers no known login, and sends no call to it."""

    async def behave(peer: Peer) -> None:
        await peer.reader.readexactly(7)
        await peer.receive()
        peer.send(RpcResponseHeader(call_id=0, status=0), RpcSasl(state=_NEGOTIATE, auths=auths))
        assert await peer.reader.read() == b""

    async with server(behave) as connection:
        with pytest.raises(SaslError, match="no login by token"):
            await call(connection)


async def test_after_a_challenge_that_is_no_text_the_next_attempt_succeeds() -> None:
    count = 0

    async def behave(peer: Peer) -> None:
        nonlocal count
        count += 1
        if count == 1:
            await peer.reader.readexactly(7)
            await peer.receive()
            broken = dataclasses.replace(AUTH, challenge=CHALLENGE.replace(b"default", b"\xff\xfe"))
            peer.send(RpcResponseHeader(call_id=0, status=0), RpcSasl(state=_NEGOTIATE, auths=(broken,)))
            await peer.reader.read()
        else:
            await peer.log_in()
            await peer.receive()
            peer.send(RpcResponseHeader(call_id=0, status=0), AllocateResponse(response_id=5))
            await peer.reader.read()

    async with server(behave) as connection:
        with pytest.raises(SaslError, match="UTF-8"):
            await call(connection)
        assert (await call(connection)).response_id == 5


async def test_a_login_without_a_challenge() -> None:
    async def behave(peer: Peer) -> None:
        await peer.reader.readexactly(7)
        await peer.receive()
        peer.send(RpcResponseHeader(call_id=0, status=0), RpcSasl(state=_SUCCESS))
        await peer.reader.read()

    async with server(behave) as connection:
        with pytest.raises(SaslError, match="state"):
            await call(connection)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0\0\0\x09short",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02\xff\xff",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_a_server_that_is_none(garbage: bytes) -> None:
    async def behave(peer: Peer) -> None:
        peer.writer.write(garbage)
        peer.writer.write_eof()
        await peer.reader.read()

    async with server(behave) as connection:
        with pytest.raises(ConnectionLost):
            await call(connection)


async def test_a_silent_server() -> None:
    async def behave(peer: Peer) -> None:
        await peer.reader.read()

    async with server(behave) as connection:
        with pytest.raises(ConnectionLost, match=r"does not answer within 0\.1 s"):
            await call(connection, 0.1)


async def test_a_connection_that_was_lost_is_made_again() -> None:
    count = 0

    async def behave(peer: Peer) -> None:
        nonlocal count
        count += 1
        await peer.log_in()
        await peer.receive()
        if count > 1:
            peer.send(RpcResponseHeader(call_id=0, status=0), AllocateResponse(response_id=5))
            await peer.reader.read()

    async with server(behave) as connection:
        with pytest.raises(ConnectionLost, match="closed"):
            await call(connection)
        assert (await call(connection)).response_id == 5


async def test_a_server_answers_if_it_offers_logins_or_refuses_in_words() -> None:
    async def offer(peer: Peer) -> None:
        assert await peer.reader.readexactly(7) == b"hrpc\x09\x00\xdf"
        await peer.receive()
        peer.send(RpcResponseHeader(call_id=0, status=0), RpcSasl(state=_NEGOTIATE, auths=(AUTH,)))
        await peer.reader.read()

    async def refuse(peer: Peer) -> None:
        peer.send(RpcResponseHeader(call_id=0, status=2, exception_class_name="a.Bad", error_msg="no"))
        await peer.reader.read()

    async def fall_silent(peer: Peer) -> None:
        await peer.reader.read()

    async def hang_up(peer: Peer) -> None:
        return

    for behave, answers in ((offer, True), (refuse, True), (fall_silent, False), (hang_up, False)):
        within_s = 0.3 if behave is fall_silent else allow_s(60)
        async with server(behave) as connection:
            assert await connection.answers(within_s) is answers, behave
    assert not await HadoopConnection("127.0.0.1", 1, protocol="p", token=TOKEN).answers(0.3)
