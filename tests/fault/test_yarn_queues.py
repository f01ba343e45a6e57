"""Kernels that wait in YARN's queues: preemption for another queue, and starts that are withdrawn."""

from __future__ import annotations

import asyncio
import time

import pytest
from cluster_world import say
from hadoop_nodes import Machine
from yarn_world import OpenYarnWorld

from roost.scheduler.service.messages import Event

pytestmark = [pytest.mark.fault_long, pytest.mark.timeout(600)]

LATE_S = 60.0
"""How long a busy machine may need for what takes a few seconds."""
GRACE_S = 5.0
"""How long YARN waits between its warning and the end of a preempted container."""
ONE_NODE = Machine(vcores=8)
"""A cluster of one node has no gaps: YARN preempts only if all nodes together have too little."""


async def test_preemption(open_yarn_world: OpenYarnWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Queue `batch` has more than its share. The owner of its newest kernel is warned, and reads the reason."""
    async with open_yarn_world({}, ONE_NODE) as world:
        batch = {"cpus": 3, "options": {"queue": "batch"}}
        kept, taken = await world.open(**batch), await world.open(**batch)
        await world.until_known(kept, taken)
        warned: list[tuple[float, Event]] = []

        def on_event(event: Event) -> None:
            if event.kind == "warned":
                warned.append((time.monotonic(), event))

        world.service().listen(on_event)
        asked_at = time.monotonic()
        urgent = world.notebook(cpus=3)  # a right of queue `default`, which has 60 % of the node
        opening = asyncio.create_task(urgent.open())
        reason = await world.ended(taken, LATE_S)
        say(f"{reason!r} after", asked_at)
        assert "preemption" in reason
        assert {event.kernel.id for _, event in warned if event.kernel} == {taken.manager.kernel_id}
        say(f"warned {time.monotonic() - warned[0][0]:.1f} s before: {warned[0][1].detail!r}")
        assert time.monotonic() - warned[0][0] > GRACE_S - 2
        assert "preemption" in caplog.text
        await asyncio.wait_for(opening, LATE_S)
        say("the urgent kernel runs after", asked_at)
        await urgent.run("mine = 42")
        await world.lives(kept, urgent)
