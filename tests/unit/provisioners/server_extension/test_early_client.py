"""A client that another extension makes while its kernel's start is pending."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient

from roost.provisioners.server_extension.early_client import let_wait
from roost.scheduler.errors import LaunchError
from roost.scheduler.messages import PORT_NAMES

INFO = {"ip": "127.0.0.1", **{name: 50_000 + number for number, name in enumerate(PORT_NAMES)}}
LATER = "has not started yet"


def pending_manager() -> Any:
    """Return a kernel's manager as `let_wait` sees it, before the kernel has started."""
    ready = asyncio.get_running_loop().create_future()
    return SimpleNamespace(kernel_id="k", ready=ready, get_connection_info=lambda: INFO)


async def test_it_connects_once_the_kernel_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    async def usual(client: AsyncKernelClient, timeout: float | None = None) -> None:
        asked.append(timeout)

    monkeypatch.setattr(AsyncKernelClient, "wait_for_ready", usual)
    km = pending_manager()
    client = let_wait(AsyncKernelClient(), km)
    with pytest.raises(LaunchError, match=LATER):
        client.start_channels()
    waiting = asyncio.ensure_future(client.wait_for_ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    km.ready.set_result(None)
    await waiting
    assert asked == [None]
    assert client.shell_channel.socket.reconnect_ivl == 5
    assert client.shell_port == INFO["shell_port"]
    client.stop_channels()
    client.context.destroy(linger=0)


async def test_it_does_not_wait_longer_than_it_may() -> None:
    client = let_wait(AsyncKernelClient(), pending_manager())
    with pytest.raises(RuntimeError, match=r"did not start within 0\.01 s"):
        await client.wait_for_ready(0.01)


async def test_it_raises_the_error_of_a_failed_start() -> None:
    km = pending_manager()
    client = let_wait(AsyncKernelClient(), km)
    km.ready.set_exception(LaunchError("no node"))
    with pytest.raises(LaunchError, match="no node"):
        await client.wait_for_ready()
    with pytest.raises(LaunchError, match=LATER):
        client.start_channels()


async def test_a_blocking_client_is_refused() -> None:
    with pytest.raises(LaunchError, match=LATER):
        let_wait(BlockingKernelClient(), pending_manager())
