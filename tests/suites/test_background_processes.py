"""A cell starts a process in the background, then the kernel is restarted: the next cell is answered at once."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from server import jupyter_server

from kit.jupyter.background_processes import STARTS, ending, find_named, start_code
from kit.jupyter.front_end import front_end, texts
from kit.jupyter.restarted_servers import EXTENSIONS, replies, start
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client.client import Client, connect
from roost.scheduler.errors import UnknownKernel
from roost.testing.deadlines import allow_s, until

REPEATS = int(os.environ.get("ROOST_TEST_RESTARTS", "3"))
"""How many restarts each test makes. They take turns at the ways to start a process and to restart a kernel."""
ANSWER_S = 15.0
"""How long the first answer after a restart may take. Plain Jupyter takes 1 to 5 s."""
READY_S = 60.0


@pytest.fixture
def name() -> Iterator[str]:
    """Yield the beginning of a name for processes. They end with the test."""
    chosen = f"daemon-{uuid.uuid4().hex}"
    with ending(chosen):
        yield chosen


def plan() -> list[tuple[str, bool]]:
    """Return for each restart how the process is started, and whether the kernel is killed."""
    ways = list(STARTS)
    return [(ways[number % len(ways)], number % 2 == 0) for number in range(REPEATS)]


async def until_forked(backend: str, kernel_id: str, restart: Callable[[], Awaitable[object]]) -> None:
    """Restart the kernel until it is forked from a warm process. In a pod or container only the first one is forked."""
    if get_spec(backend).has_agent_per_kernel:
        return
    service = connect(backend)

    async def is_forked() -> bool:
        how = await read_how(service, kernel_id)
        if how and how != "forked":
            await restart()
        return how == "forked"

    await until(is_forked, "the kernel is forked", READY_S, 0.5)


async def read_how(service: Client, kernel_id: str) -> str:
    """Return how the kernel was started; empty until then. A server answers before the service knows of a start."""
    with contextlib.suppress(UnknownKernel):
        return (await service.kernel(kernel_id)).how
    return ""


@pytest.mark.backends("local", "ray", "dask", "kubernetes", "yarn", "ssh")
async def test_a_client_reaches_the_restarted_kernel(
    specs_of: Callable[..., KernelSpecManager], backend: str, name: str
) -> None:
    km = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=specs_of())
    await km.start_kernel()
    await until_forked(backend, km.kernel_id, partial(km.restart_kernel, now=True))
    client = km.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=allow_s(READY_S))
        for number, (how, now) in enumerate(plan()):
            daemon, shown = f"{name}-{number}-", list[str]()

            def note(message: dict[str, Any], shown: list[str] = shown) -> None:
                shown.append(message["content"].get("text", ""))

            await client.execute_interactive(
                start_code(how, daemon), timeout=allow_s(READY_S), output_hook=note
            )
            await until(partial(find_named, daemon), "the process runs", READY_S)
            shown.clear()
            ports = km.ports
            await km.restart_kernel(now=now)
            assert km.ports == ports, "the process holds the ports"
            began = time.monotonic()
            await client.wait_for_ready(timeout=allow_s(ANSWER_S))
            code = f"print({number})"
            reply = await client.execute_interactive(code, timeout=allow_s(ANSWER_S), output_hook=note)
            print(f"{how} now={now} {time.monotonic() - began:.2f} s")
            assert (reply["content"]["status"], "".join(shown)) == ("ok", f"{number}\n")
    finally:
        client.stop_channels()
        await km.shutdown_kernel(now=True)


@pytest.mark.backends("local", "ray", "dask", "kubernetes", "yarn", "ssh")
async def test_an_open_websocket_reaches_the_restarted_kernel(
    specs_of: Callable[..., object], backend: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs_of()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    async with contextlib.AsyncExitStack() as stack:
        extensions = f"--ServerApp.jpserver_extensions={EXTENSIONS}"
        server = await stack.enter_async_context(jupyter_server(tmp_path, options=(extensions,)))
        kernel_id = await start(server, "roosted")
        stack.push_async_callback(server.api, "DELETE", f"kernels/{kernel_id}")
        restart = partial(server.api, "POST", f"kernels/{kernel_id}/restart", {})
        await until_forked(backend, kernel_id, restart)
        front = await stack.enter_async_context(front_end(server, kernel_id, "open"))
        for number, (how, _) in enumerate(plan()):
            daemon = f"{name}-{number}-"
            await front.ended(await front.run(start_code(how, daemon)), READY_S)
            await until(partial(find_named, daemon), "the process runs", READY_S)
            assert (await restart())[0] == 200
            began = time.monotonic()
            messages = await front.ended(await front.run(f"print({number})"), ANSWER_S)
            print(f"{how} {time.monotonic() - began:.2f} s")
            assert (texts(messages), replies(messages)) == (f"{number}\n", ["ok"])
