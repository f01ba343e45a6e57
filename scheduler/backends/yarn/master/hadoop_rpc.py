"""Hadoop's RPC, version 9: calls on one connection, with a login by token.

    "hrpc" 9 0 0xDF                              version, service class, "SASL follows"
    length (header, RpcSasl) …                   NEGOTIATE → NEGOTIATE (challenge) → INITIATE (reply) → SUCCESS (proof)
    length (header, IpcConnectionContext)        the protocol
    length (header, RequestHeader, request)      → length (header, answer)

Each message in parentheses has its own length. After the login, a server may want each frame sealed, within an RpcSasl
message (`sasl.Seal`).
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import uuid
from typing import TypeVar

from .sasl import MAX_CLEAR, SaslError, Seal, answer_challenge
from .schema import (
    IpcConnectionContext,
    RequestHeader,
    RpcRequestHeader,
    RpcResponseHeader,
    RpcSasl,
    Token,
)
from .wire import WireFormatError, decode, encode, frame, split

T = TypeVar("T")

_PREAMBLE = b"hrpc\x09\x00\xdf"
_PROTOCOL_BUFFERS, _FINAL_PACKET = 2, 0
_CONTEXT_CALL, _SASL_CALL = -3, -33
_SUCCESS, _NEGOTIATE, _INITIATE, _WRAP = 0, 1, 2, 5
_MAX_FRAME = 64 << 20  # Hadoop's own default, ipc.maximum.data.length


class CallRefused(Exception):
    """A server answered with an exception: the name of its Java class, and its text."""

    def __init__(self, class_name: str, text: str) -> None:
        self.name, self.text = class_name.rpartition(".")[2], text
        super().__init__(class_name, text)

    def __str__(self) -> str:
        return f"{self.name}: {self.text.partition(chr(10))[0]}"


class ConnectionLost(Exception):
    """There is no server, or it does not answer, or its answer cannot be read. Make another connection."""


class HadoopConnection:
    """A connection to one protocol of a server. It carries one call at a time, and is closed after a failed call."""

    def __init__(self, host: str, port: int, *, protocol: str, token: Token) -> None:
        self._address, self._protocol, self._token = (host, port), protocol, token
        self._client_id = uuid.uuid4().bytes
        self._calls = 0
        self._seal: Seal | None = None
        self._unread = b""
        self._writer: asyncio.StreamWriter | None = None

    def __enter__(self) -> HadoopConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def call(self, method: str, request: object, answer: type[T], *, timeout_s: float) -> T:
        """Connect if need be, and call. Raises `CallRefused`, `ConnectionLost` or `SaslError`."""
        try:
            return await asyncio.wait_for(self._call(method, request, answer), timeout_s)
        except CallRefused:
            if self._calls == 0:  # the login was refused
                self.close()
            raise
        except asyncio.TimeoutError:  # first, because Python >= 3.11 has it among the OSErrors
            self.close()
            raise ConnectionLost(f"{self._name()} does not answer within {timeout_s:g} s") from None
        except (OSError, EOFError, WireFormatError) as problem:
            self.close()
            text = "the connection was closed" if isinstance(problem, EOFError) else problem
            raise ConnectionLost(f"{self._name()}: {text}") from problem
        except BaseException:
            self.close()
            raise

    async def answers(self, within_s: float) -> bool:
        """True if a server answers the first message of a login in time. Closes the connection."""
        try:
            await asyncio.wait_for(self._greet(), within_s)
        except (CallRefused, SaslError):
            return True
        except (OSError, EOFError, WireFormatError, asyncio.TimeoutError):
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Close the connection. May be repeated; a later call connects again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _name(self) -> str:
        return ":".join(map(str, self._address))

    async def _call(self, method: str, request: object, answer: type[T]) -> T:
        if self._writer is None:
            await self._connect()
        number = self._calls
        self._calls += 1
        header = RequestHeader(
            method_name=method, declaring_class_protocol_name=self._protocol, client_protocol_version=1
        )
        await self._send(number, header, request)
        while True:
            response, content = self._parse(await self._receive())
            if response.call_id == number:
                return decode(answer, content)

    async def _connect(self) -> None:
        seal = await self._log_in(await self._greet())
        self._seal = seal
        await self._send(_CONTEXT_CALL, IpcConnectionContext(protocol=self._protocol))

    async def _greet(self) -> RpcSasl:
        """Connect, and return the logins that the server offers."""
        self._seal, self._unread, self._calls = None, b"", 0
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        self._writer.write(_PREAMBLE)
        await self._send(_SASL_CALL, RpcSasl(state=_NEGOTIATE))
        return await self._receive_sasl(_NEGOTIATE)

    async def _log_in(self, offer: RpcSasl) -> Seal | None:
        method = next((auth for auth in offer.auths if auth.method == "TOKEN"), None)
        if method is None or method.mechanism != "DIGEST-MD5":
            offered = ", ".join(f"{auth.method} by {auth.mechanism}" for auth in offer.auths)
            raise SaslError(f"{self._name()} offers no login by token that is known: {offered}")
        answer = answer_challenge(
            method.challenge,
            user=base64.b64encode(self._token.identifier).decode(),
            password=base64.b64encode(self._token.password).decode(),
            uri=f"{method.protocol or ''}/{method.server_id or ''}",
        )
        chosen = dataclasses.replace(method, challenge=b"")
        await self._send(_SASL_CALL, RpcSasl(state=_INITIATE, token=answer.reply, auths=(chosen,)))
        if (await self._receive_sasl(_SUCCESS)).token != answer.expected:
            raise SaslError(f"{self._name()} did not prove that it knows the token")
        return answer.seal

    async def _receive_sasl(self, state: int) -> RpcSasl:
        message = decode(RpcSasl, self._parse(await self._receive())[1])
        if message.state != state:
            raise SaslError(f"{self._name()} answered the login with state {message.state}, not {state}")
        return message

    async def _send(self, call_id: int, *messages: object) -> None:
        """Send a frame. Sealed frames may be sent in pieces: the server joins them."""
        assert self._writer is not None
        content = _pack(self._header(call_id), *messages)
        if self._seal is None:
            self._writer.write(content)
        else:
            for start in range(0, len(content), MAX_CLEAR):
                sealed = self._seal.wrap(content[start : start + MAX_CLEAR])
                self._writer.write(_pack(self._header(_SASL_CALL), RpcSasl(state=_WRAP, token=sealed)))
        await self._writer.drain()

    def _header(self, call_id: int) -> RpcRequestHeader:
        return RpcRequestHeader(
            rpc_kind=_PROTOCOL_BUFFERS,
            rpc_op=_FINAL_PACKET,
            call_id=call_id,
            client_id=self._client_id,
            retry_count=-1 if call_id < 0 else 0,
        )

    def _parse(self, data: bytes) -> tuple[RpcResponseHeader, bytes]:
        head, at = split(data)
        header = decode(RpcResponseHeader, head)
        if header.status:
            raise CallRefused(header.exception_class_name, header.error_msg)
        return header, split(data, at)[0]

    async def _receive(self) -> bytes:
        """Return the next frame without its length."""
        if self._seal is None:
            return await self._receive_frame()
        while len(self._unread) < 4 or len(self._unread) < 4 + _read_size(self._unread[:4]):
            message = decode(RpcSasl, self._parse(await self._receive_frame())[1])
            self._unread += self._seal.unwrap(message.token)
        end = 4 + _read_size(self._unread[:4])
        content, self._unread = self._unread[4:end], self._unread[end:]
        return content

    async def _receive_frame(self) -> bytes:
        return await self._reader.readexactly(_read_size(await self._reader.readexactly(4)))


def _read_size(head: bytes) -> int:
    """Return the size of a frame that begins with these four bytes. Raises `WireFormatError`."""
    size = int.from_bytes(head, "big")
    if size > _MAX_FRAME:
        raise WireFormatError(f"a frame has {size} bytes")
    return size


def _pack(*messages: object) -> bytes:
    content = b"".join(frame(encode(message)) for message in messages)
    return len(content).to_bytes(4, "big") + content
