"""A kernel manager without jupyter_client's pauses, with a fake service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

from kit.fakes.service import FakeService
from kit.jupyter.kernel_managers import manager
from roost.provisioners.server_extension.quick_manager import make_quick
from roost.scheduler.errors import NoNodeNow


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list to which each later pause of jupyter_client adds its length in seconds."""
    made: list[float] = []
    sleep = asyncio.sleep

    async def note(delay: float, *arguments: Any) -> None:
        made.append(delay)
        await sleep(delay, *arguments)

    monkeypatch.setattr("jupyter_client.manager.asyncio.sleep", note)
    return made


async def test_a_kernel_starts_restarts_and_ends_without_a_pause(
    service: FakeService, tmp_path: Path, pauses: list[float]
) -> None:
    usual, quick = manager(tmp_path, ServerKernelManager), manager(tmp_path, ServerKernelManager)
    make_quick(quick)
    for km, expected in ((usual, 4), (quick, 0)):
        await km.start_kernel()
        assert km.ready.result() is None
        ready = km.ready
        await km.restart_kernel(now=True)
        assert km.ready is not ready
        assert km.ready.done()
        await km.shutdown_kernel(now=True)
        assert pauses.count(0.01) == expected
        pauses.clear()


async def test_a_failed_start_is_seen_by_those_who_wait(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path, ServerKernelManager)
    make_quick(km)
    service.answers["start"] = NoNodeNow("All GPUs are taken.")
    with pytest.raises(NoNodeNow):
        await km.start_kernel()
    assert isinstance(km.ready.exception(), NoNodeNow)


async def test_a_class_with_its_own_start_keeps_it(
    service: FakeService, tmp_path: Path, pauses: list[float]
) -> None:
    class Own(ServerKernelManager):  # type: ignore[misc]
        has_started = False

        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(**options)
            self.has_started = True

    km = manager(tmp_path, Own)
    make_quick(km)
    await km.start_kernel()
    assert km.has_started
    assert 0.01 not in pauses
    await km.shutdown_kernel(now=True)


async def test_only_the_sockets_of_one_kernel_connect_again_soon() -> None:
    with zmq.asyncio.Context() as context:
        quick, usual = (
            ServerKernelManager(context=context, shell_port=50_001, iopub_port=50_002) for _ in range(2)
        )
        make_quick(quick)
        with context.socket(zmq.DEALER) as socket:
            default = socket.reconnect_ivl, socket.reconnect_ivl_max
        for km, expected in ((quick, (5, 100)), (usual, default)):
            for stream in (km.connect_shell(), km.connect_iopub()):
                assert (stream.socket.reconnect_ivl, stream.socket.reconnect_ivl_max) == expected
                stream.close(linger=0)


async def test_a_restart_that_fails_is_over(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path, ServerKernelManager)
    make_quick(km)
    waiting = km.started
    with pytest.raises((AssertionError, RuntimeError)):  # it was never started
        await km.restart_kernel()
    assert (waiting.is_set(), km.is_restarting) == (True, False)
    await km.cleanup_resources()
