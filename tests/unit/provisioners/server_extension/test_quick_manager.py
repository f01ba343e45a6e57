"""The steps of a kernel's manager without jupyter_client's pauses, with a fake service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeService
from jupyter_client.manager import AsyncKernelManager
from provisioned import manager

from roost.provisioners.server_extension.quick_manager import skip_pauses
from roost.scheduler.errors import NoNodeNow


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses that jupyter_client makes from now on."""
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
    usual, quick = manager(tmp_path), manager(tmp_path)
    skip_pauses(quick)
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
    km = manager(tmp_path)
    skip_pauses(km)
    service.answers["start"] = NoNodeNow("All GPUs are taken.")
    with pytest.raises(NoNodeNow):
        await km.start_kernel()
    assert isinstance(km.ready.exception(), NoNodeNow)


def test_a_class_with_its_own_start_keeps_it(tmp_path: Path) -> None:
    class Own(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(**options)

    km = manager(tmp_path, Own)
    skip_pauses(km)
    assert km.start_kernel.__func__ is Own.start_kernel
