"""Kernels that wait in YARN's queues: preemption, starts that are withdrawn, and the reasons for waiting."""

from __future__ import annotations

import asyncio
import time

import pytest

from kit.clusters.faults import say, until
from kit.clusters.hadoop_nodes import Machine
from kit.clusters.yarn.faults import OpenYarnWorld, YarnWorld
from roost.scheduler.messages import Event
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.long

LATE_S = 60.0
"""How long a busy machine may need for a step that usually takes a few seconds."""
GRACE_S = 5.0
"""How long YARN waits between its warning and the end of a preempted container."""
ONE_NODE = Machine(vcores=8)
"""One node, so that free room is in one place: YARN preempts only if all nodes together have too little."""


async def test_preemption(open_yarn_world: OpenYarnWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Queue `batch` has more than its share. The owner of one of its kernels is warned, and reads the reason."""
    async with open_yarn_world({}, ONE_NODE) as world:
        batch = {"cpus": 3, "options": {"queue": "batch"}}
        notebooks = [await world.open(**batch) for _ in range(2)]
        await world.until_known(*notebooks)
        warned: dict[str, tuple[float, str]] = {}

        def on_event(event: Event) -> None:
            if event.kind == "warned" and event.kernel is not None:
                warned.setdefault(event.kernel.id, (time.monotonic(), event.detail))

        world.service().listen(on_event)
        asked_at = time.monotonic()
        urgent = world.notebook(cpus=3)  # a right of queue `default`, which has 60 % of the node
        opening = asyncio.create_task(urgent.open())
        await until(lambda: warned, "the owner is warned", LATE_S)
        (kernel_id, (warned_at, warning)), *others = warned.items()
        say(f"{warning!r} after {warned_at - asked_at:.1f} s")
        assert "preemption" in warning
        (taken,) = [notebook for notebook in notebooks if notebook.manager.kernel_id == kernel_id]
        assert await taken.value("mine") == "42"
        reason = await world.ended(taken, LATE_S)
        say(f"{reason!r}, after the warning by", warned_at)
        assert "preemption" in reason
        assert caplog.text.count("preemption") == 2, "the owner's log has the warning and the reason"
        await asyncio.wait_for(opening, allow_s(LATE_S))
        say("the urgent kernel runs after", asked_at)
        await urgent.run("mine = 42")
        assert not others
        notebooks.remove(taken)
        await world.lives(*notebooks, urgent)


async def test_starts_that_are_withdrawn(open_yarn_world: OpenYarnWorld) -> None:
    """Withdrawn starts leave no ask in YARN, even if the service is killed during the withdrawal."""
    async with open_yarn_world({}, ONE_NODE) as world:
        kept = await world.open(cpus=5)
        for is_service_killed in (False, False, True):
            opening = asyncio.create_task(world.notebook(cpus=4).open())
            say(await world.waits_for("no node has room"))
            await until(lambda: asks(world) == 1, "YARN knows the ask")
            cancelled_at = time.monotonic()
            opening.cancel()
            if is_service_killed:
                world.kill_service()
            await asyncio.wait([opening], timeout=allow_s(LATE_S))
            await until(lambda: asks(world) == 0, "the ask is withdrawn")
            say("YARN knows the ask no more after", cancelled_at)
            world.opened.pop()
            await world.lives(kept)
        await kept.close()
        world.opened.remove(kept)
        await until(lambda: (cores(world), world.held()) == (1, {}), "only the master is left")


async def test_a_node_manager_that_is_silent(open_yarn_world: OpenYarnWorld) -> None:
    """YARN itself shows its node as RUNNING until the expiry. The kernel runs once the daemon answers."""
    async with open_yarn_world({}, Machine(vcores=4), Machine(vcores=2, gpus=1)) as world:
        first = await world.open()  # so that there is a master
        await first.close()
        world.opened.remove(first)
        host = world.cluster.address_of("nm2")
        world.cluster.pause("nm2")
        try:
            opening = asyncio.create_task(world.notebook(gpus=1).open())
            reason = await world.waits_for("does not answer")
            say(repr(reason))
            assert reason == f"the NodeManager of {host} does not answer"
        finally:
            world.cluster.resume("nm2")
        resumed_at = time.monotonic()
        await asyncio.wait_for(opening, allow_s(LATE_S))
        say("the kernel runs after", resumed_at)


def asks(world: YarnWorld) -> int:
    """Return how many containers roost's applications wait for, as YARN knows it."""
    rows = [row for master in world.masters() for row in master.get("resourceRequests", ())]
    return sum(row["numContainers"] for row in rows if row["resourceName"] == "*")


def cores(world: YarnWorld) -> int:
    """Return the virtual cores that YARN has granted to roost's applications."""
    return sum(master["allocatedVCores"] for master in world.masters())
