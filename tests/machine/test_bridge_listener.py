"""The port for a launcher's answer: everybody on the node can connect to it, and harms nobody."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kit.jupyter.odd_launcher import an_answer, load_seal
from roost.launchers.bridge import answer as module
from roost.launchers.bridge.answer import AnswerKey, AnswerListener
from roost.launchers.protocol.shared_values import PORT_NAMES
from roost.testing.deadlines import allow_s

KERNEL_ID = "0123456789abcdef-1"
SEAL = load_seal()
KEY = AnswerKey()


@pytest.fixture
async def listener() -> AsyncIterator[AnswerListener]:
    """Yield a listener that takes this test for the launcher."""
    made = AnswerListener(KEY, KERNEL_ID, os.getsid(0))
    made.address = await made.open()  # type: ignore[attr-defined]
    yield made
    made.close()


@pytest.fixture
def listen() -> Iterator[Callable[[], int]]:
    """Yield a function that listens on a new port and returns it."""
    with ExitStack() as sockets:
        yield lambda: sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]


async def connect(listener: AnswerListener, content: bytes = b"") -> tuple[asyncio.StreamReader, Any]:
    """Connect, and send some bytes without an end."""
    host, port = listener.address.split(":")  # type: ignore[attr-defined]
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(content)
    return reader, writer


async def send(listener: AnswerListener, content: bytes) -> None:
    """Send some bytes, and wait until the listener has closed the connection."""
    reader, writer = await connect(listener, content)
    try:
        writer.write_eof()
        await asyncio.wait_for(reader.read(), allow_s(30))
    except ConnectionError:
        pass
    finally:
        writer.close()


async def wait(listener: AnswerListener) -> Any:
    return await asyncio.wait_for(listener.wait(), allow_s(30))


def seal(**changes: Any) -> bytes:
    return SEAL["seal"](an_answer(KERNEL_ID, **changes), KEY.public)


def all_ports(listen: Callable[[], int]) -> dict[str, int]:
    return {name: listen() for name in (*PORT_NAMES, "comm_port")}


async def test_the_answer_arrives_beside_bad_and_idle_connections(
    listener: AnswerListener, listen: Callable[[], int]
) -> None:
    idle = [await connect(listener, content) for content in (b"", b"e", b"\x00") for _ in range(10)]
    for content in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4_096), b"A" * 300_000, seal(kernel_id="x")):
        await send(listener, content)
    assert listener.last_refusal == "is for another kernel"
    await send(listener, seal(**all_ports(listen), key="the right key 16"))
    assert (await wait(listener)).key == b"the right key 16"
    for _, writer in idle:
        writer.close()


async def test_a_crowd_of_idle_connections_makes_room(
    listener: AnswerListener, listen: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTION_S", 3_600.0)
    crowd = [await connect(listener) for _ in range(3 * module.MOST_CONNECTIONS)]
    assert await asyncio.wait_for(crowd[0][0].read(), allow_s(30)) == b""
    await send(listener, seal(**all_ports(listen)))
    await wait(listener)
    for _, writer in crowd:
        writer.close()


async def test_a_slow_connection_is_closed(listener: AnswerListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTION_S", 0.01)
    reader, writer = await connect(listener, b"e")
    assert await asyncio.wait_for(reader.read(), allow_s(30)) == b""
    assert "has not arrived within" in listener.last_refusal
    writer.close()


async def test_too_long_an_answer_is_cut(listener: AnswerListener) -> None:
    await send(listener, b"A" * 70_000)
    assert listener.last_refusal == "has more than 64 KiB"


@contextmanager
def foreign_listener(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Let a process of another session listen on a port, and yield the port."""
    code = f"import signal, socket\ns = socket.create_server({(host, port)})\nprint(s.getsockname()[1], flush=True)"
    command = [sys.executable, "-S", "-c", f"{code}\nsignal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@pytest.fixture
def foreign_port() -> Iterator[int]:
    """Yield a port on which a process of another session listens."""
    with foreign_listener() as port:
        yield port


async def test_who_listens_on_another_address_harms_nobody(
    listener: AnswerListener, listen: Callable[[], int]
) -> None:
    ours = all_ports(listen)
    with foreign_listener("127.0.0.2", ours["hb_port"]):
        await send(listener, seal(**ours))
        await wait(listener)


async def test_a_foreign_process_is_refused(
    listener: AnswerListener, listen: Callable[[], int], foreign_port: int
) -> None:
    """Its answer is well encrypted: the public key stands in a command line."""
    ours = all_ports(listen)
    await send(listener, seal(**{**ours, "comm_port": foreign_port}))
    assert "foreign process" in listener.last_refusal
    await send(listener, seal(**{**ours, "shell_port": foreign_port}, key="of the forger 16"))
    await send(listener, seal(**ours, key="the right key 16"))
    assert (await wait(listener)).key == b"the right key 16"


async def test_the_answer_waits_until_the_kernel_listens(
    listener: AnswerListener, listen: Callable[[], int]
) -> None:
    ours = all_ports(listen)
    with socket.socket() as later:
        later.bind(("127.0.0.1", 0))
        ours["hb_port"] = later.getsockname()[1]
        await send(listener, seal(**ours))
        waiting = asyncio.ensure_future(listener.wait())
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        later.listen()
        await asyncio.wait_for(waiting, allow_s(30))
