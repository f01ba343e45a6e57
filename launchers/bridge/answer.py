"""The answer of a launcher: where its kernel listens, and with which keys. It arrives encrypted, on loopback.

An answer is the base64 of a JSON object {"version": 1, "key": K, "conn_info": C}. K is an AES key, encrypted with the
listener's public key (RSA, PKCS #1 v1.5). C is the kernel's connection file with a few more fields, encrypted with the
AES key (ECB). K and C are in base64.

Everybody on the node can connect and send an answer, because the public key stands in a command line. A foreign process
cannot listen within the launch's session, so the ports in an answer must belong to it. A connection may send 64 KiB
within 10 s. There are 64 connections at most: the oldest makes room for a new one. A launcher sends its answer at once,
so its connection is never among the oldest for long.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.launchers.daemon.json_text import UnfitText, parse_json
from roost.launchers.daemon.tcp_listeners import list_on_loopback
from roost.launchers.protocol.shared_values import PORT_NAMES
from roost.launchers.protocol.signature import is_scheme

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 10
"""The greatest size of an answer. Those of real launchers have about 1,500 bytes."""
_RSA_BITS = 2048
_AES_BYTES = 16
_CURVE_KEY_CHARACTERS = 40
_MOST_KEY_CHARACTERS = 256
_ALL_ADDRESSES = ("0.0.0.0", "*", "127.0.0.1", "localhost")
"""The addresses at which a launcher's ports can be reached on loopback."""
MOST_CONNECTIONS = 64
CONNECTION_S = 10.0
"""How long a connection may take to send its answer."""
_MOST_ANSWERS = 16
"""How many answers may wait until their ports listen."""
_MOST_REFUSALS = 20
"""How many refusals are logged."""
_LOOK_S = 0.03
"""How long a wait for the kernel's ports pauses between two looks. Nothing reports that a foreign port listens."""
_BACKLOG = 100


class RefusedAnswer(ValueError):
    """A text that is no answer to this launch. The error's text is a predicate, such as `is not JSON`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The connection of a launcher's kernel, whose ports are on loopback."""

    ports: Mapping[str, int]
    """The kernel's ports, by the names in `PORT_NAMES`."""
    comm_port: int
    """The port on which the launcher takes requests."""
    key: bytes = field(repr=False)
    signature_scheme: str
    curve_public: bytes | None
    """The public key of the kernel's sockets; None if they are not encrypted."""

    @property
    def all_ports(self) -> frozenset[int]:
        return frozenset([*self.ports.values(), self.comm_port])


class AnswerKey:
    """The key pair of one launch. Making one takes half a second. Raises `ImportError` without pycryptodome."""

    def __init__(self) -> None:
        from Crypto.PublicKey import RSA

        self._pair = RSA.generate(_RSA_BITS)

    @property
    def public(self) -> str:
        """The public key for the launcher's command: the base64 of its DER form."""
        return base64.b64encode(self._pair.public_key().export_key("DER")).decode()

    def read(self, content: bytes, kernel_id: str) -> Answer:
        """Return the answer in the bytes of one connection. Raises `RefusedAnswer`."""
        try:
            payload = _read_object(_decode(content, "is not base64"))
        except UnfitText:
            raise RefusedAnswer(
                "is not JSON, as one of version 0, which anybody on the node can read"
            ) from None
        if payload.get("version") != 1:
            raise RefusedAnswer(f"has the version {payload.get('version', 0)!r:.20}, and not 1")
        return _check(self._decrypt(payload), kernel_id)

    def _decrypt(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        from Crypto.Cipher import AES, PKCS1_v1_5
        from Crypto.Util.Padding import unpad

        sealed_key = _decode(payload.get("key"), "has no encrypted key")
        sealed_info = _decode(payload.get("conn_info"), "has no connection")
        # A wrong key must get the same refusal as a wrong text, or refusals would help to guess the key.
        other_key = os.urandom(_AES_BYTES)
        try:
            cipher = PKCS1_v1_5.new(self._pair)
            key = cipher.decrypt(sealed_key, other_key, expected_pt_len=_AES_BYTES)
            plain = unpad(AES.new(key, AES.MODE_ECB).decrypt(sealed_info), AES.block_size)
            return _read_object(plain)
        except ValueError:
            raise RefusedAnswer("is not encrypted with the public key of this launch") from None


def _read_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in some bytes. Raises `UnfitText`."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise UnfitText("is no JSON object")
    return value


def _decode(text: object, refusal: str) -> bytes:
    try:
        if isinstance(text, (bytes, str)):
            given = (
                text.encode() if isinstance(text, str) else b"".join(text.split())
            )  # some end with a line end
            return base64.b64decode(given, validate=True)
    except (binascii.Error, UnicodeError):
        pass
    raise RefusedAnswer(refusal)


def _check(info: Mapping[str, Any], kernel_id: str) -> Answer:
    """Return the answer that the decrypted fields make. Raises `RefusedAnswer`."""
    if info.get("kernel_id") != kernel_id:
        raise RefusedAnswer("is for another kernel")
    for name in (*PORT_NAMES, "comm_port"):
        if not _is_port(info.get(name)):
            raise RefusedAnswer(f"has no usable {name}")
    key, scheme = info.get("key"), info.get("signature_scheme", "hmac-sha256")
    if not isinstance(key, str) or not 16 <= len(key) <= _MOST_KEY_CHARACTERS or not key.isprintable():
        raise RefusedAnswer("has no usable key")
    if not is_scheme(scheme):
        raise RefusedAnswer(f"has the signature scheme {scheme!r:.40}, which is unknown")
    if info.get("transport", "tcp") != "tcp" or info.get("ip", "0.0.0.0") not in _ALL_ADDRESSES:
        raise RefusedAnswer("names ports that are not on loopback")
    curve = info.get("curve_publickey")
    if curve and not (isinstance(curve, str) and len(curve) == _CURVE_KEY_CHARACTERS and curve.isascii()):
        raise RefusedAnswer("has no usable CURVE key")
    answer = Answer(
        ports={name: info[name] for name in PORT_NAMES},
        comm_port=info["comm_port"],
        key=key.encode(),
        signature_scheme=scheme,
        curve_public=curve.encode() if curve else None,
    )
    if len(answer.all_ports) <= len(PORT_NAMES):
        raise RefusedAnswer("names one port twice")
    return answer


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16


class AnswerListener:
    """A TCP port of loopback that takes the answer of the launcher of one kernel.

    An answer must be encrypted with the public key of `answer_key`. The launcher's session must listen on its
    `comm_port`, and later on the kernel's five ports.
    """

    def __init__(self, answer_key: AnswerKey, kernel_id: str, session: int) -> None:
        self._answer_key = answer_key
        self._kernel_id = kernel_id
        self._session = session
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._answers: list[Answer] = []
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refusals = 0
        self.last_refusal = ""
        """Why the last refused connection was refused, as a predicate about an answer."""

    async def open(self) -> str:
        """Listen, and return the address as `127.0.0.1:PORT`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=_BACKLOG)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        """Stop to listen, and close all connections. May be called again."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        if not self._first.done():
            self._first.cancel()

    async def wait(self) -> Answer:
        """Return the first answer whose six ports belong to the launch.

        The kernel then listens on all of them.
        """
        await self._first
        while True:
            for answer in self._answers:
                if are_of_session(answer.all_ports, self._session):
                    return answer
            await asyncio.sleep(_LOOK_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = None
        if len(self._connections) > MOST_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.transport.abort()
        try:
            self._take(await asyncio.wait_for(_read(reader), CONNECTION_S))
        except RefusedAnswer as problem:
            self._refuse(str(problem))
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            self._refuse(f"has not arrived within {CONNECTION_S:g} s of its connection")
        except OSError:  # the peer has left, or made room
            pass
        finally:
            self._connections.pop(writer, None)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _take(self, content: bytes) -> None:
        """Keep an answer if it is one of this launch. Raises `RefusedAnswer`."""
        answer = self._answer_key.read(content, self._kernel_id)
        if not are_of_session([answer.comm_port], self._session):
            raise RefusedAnswer(
                "is of a foreign process: no process of the launcher listens on its comm_port"
            )
        if len(self._answers) == _MOST_ANSWERS:
            raise RefusedAnswer(f"is one too many: {_MOST_ANSWERS} others wait for their ports")
        self._answers.append(answer)
        if not self._first.done():
            self._first.set_result(None)

    def _refuse(self, reason: str) -> None:
        self.last_refusal = reason
        self._refusals += 1
        if self._refusals <= _MOST_REFUSALS:
            log.warning("an answer was refused: it %s", reason)


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return all bytes of a connection. Raises `RefusedAnswer`, and `OSError` if the connection breaks."""
    content = bytearray()
    while part := await reader.read(4096):
        content += part
        if len(content) > MOST_BYTES:
            raise RefusedAnswer(f"has more than {MOST_BYTES >> 10} KiB")
    if not content:
        raise RefusedAnswer("is empty")
    return bytes(content)


def are_of_session(ports: Collection[int], session: int) -> bool:
    """True if processes of this session, and no others, take the connections to each of the ports on 127.0.0.1.

    It reads the tables of the system, which takes some milliseconds.
    """
    listeners = list_on_loopback(ports)
    wanted = {f"socket:[{each.inode}]" for found in listeners.values() for each in found}
    return all(listeners.values()) and wanted <= set(_find_sockets(session))


def _find_sockets(session: int) -> Iterator[str]:
    """Yield the names of all open files of the session's processes, as `socket:[17]`."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if entry.isdecimal() and os.getsid(int(entry)) == session:
                folder = f"/proc/{entry}/fd"
                for descriptor in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        yield os.readlink(f"{folder}/{descriptor}")
