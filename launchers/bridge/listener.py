"""Accepts the answer of one launcher, on loopback. Everybody on the node can connect, and must not do harm.

A connection may send 64 KiB within 10 s. There are 64 connections at most: the oldest makes room for a new one. A
launcher sends its answer at once, so its connection is never among the oldest for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from .answer import MOST_BYTES, Answer, AnswerKey, OldLauncher, RefusedAnswer
from .session_ports import are_of_session

log = logging.getLogger(__name__)

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


class TooOld(Exception):
    """The launcher of this launch has sent an answer of version 0."""


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

        The kernel then listens on all of them. Raises `TooOld`.
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
        try:
            answer = self._answer_key.read(content, self._kernel_id)
        except OldLauncher as old:
            # Only the launcher itself may end the launch: anybody can send such an answer.
            if are_of_session([old.comm_port], self._session) and not self._first.done():
                self._first.set_exception(TooOld())
            raise
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
