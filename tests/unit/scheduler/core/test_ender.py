"""The scheduler retries a failed release of a lease. Each lease has at most one planned retry."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from kit.machine.manual_clock import ManualClock
from roost.launchers.daemon.tasks import Timers
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.core.ender import RETRY_S, KernelEnder
from roost.scheduler.errors import BackendUnavailable

LEASE = Lease(id="a", kernel_id="k", node_id="n", request=Request(), owner=Owner(user="ada"))


async def test_a_lease_that_readings_show_again_and_again_has_one_retry() -> None:
    tries = 0

    async def release(_: Lease) -> None:
        nonlocal tries
        tries += 1
        if tries < 7:
            raise BackendUnavailable("the manager is away")

    clock = ManualClock()
    cluster: Any = SimpleNamespace(backend=SimpleNamespace(release=release))
    nothing: Any = None
    ender = KernelEnder(cluster, nothing, Timers(clock))

    async def after(expected: int) -> None:
        await asyncio.wait(ender._tasks)
        assert tries == expected

    for number in range(1, 6):  # each reading tries at once
        ender.release_soon(LEASE)
        ender.release_soon(LEASE)
        await after(number)
    for number in (6, 7):
        clock.advance(RETRY_S)
        await after(number)
    clock.advance(10 * RETRY_S)
    assert not ender._tasks
