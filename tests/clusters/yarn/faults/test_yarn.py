"""kill -9 of each part under kernels in YARN's containers: which kernels live on, which end, and for which reason."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from kit.clusters.faults import assert_plain, say, until
from kit.clusters.yarn.faults import SPARE, YarnWorld
from kit.clusters.yarn.shared_cluster import container_of
from kit.jupyter.notebook import held_by
from kit.machine.daemons import wait_gone
from roost.scheduler.errors import BackendUnavailable, RoostError

LATE_S = 30.0
"""How long a busy machine may need for a step that usually takes a few seconds."""


async def test_the_service_and_a_master_while_a_container_is_pending(yarn_world: YarnWorld) -> None:
    kept = await yarn_world.open()
    await yarn_world.until_known(kept)
    yarn_world.cluster.pause("nm3")
    notebook = yarn_world.notebook(**SPARE, launch_timeout=600)
    try:
        opening = asyncio.create_task(notebook.open())
        say(await yarn_world.waits_for("does not answer"))
        (lease,) = [kernel.lease_id for kernel in await yarn_world.service().kernels() if kernel.is_pending]
        for _ in range(2):
            yarn_world.kill_service()
            await yarn_world.running(kept)
            kernels = await yarn_world.service().kernels()
            assert {kernel.state for kernel in kernels} == {"running", "queued"}
        (again,) = [kernel.lease_id for kernel in kernels if kernel.is_pending]
        assert again == lease
        yarn_world.kill_masters()
        yarn_world.kill_service()  # now only the notebook knows of the start, and repeats it
        await yarn_world.running(kept)
    finally:
        yarn_world.cluster.resume("nm3")
    resumed_at = time.monotonic()
    await opening
    say("the pending kernel runs after", resumed_at)
    await notebook.run("mine = 42")
    await yarn_world.lives(kept, notebook)


async def test_the_agent(yarn_world: YarnWorld) -> None:
    notebook = await yarn_world.open()
    agent, *others = yarn_world.processes(notebook)
    before = container_of(notebook.pid)
    killed_at = time.monotonic()
    agent.kill()
    assert all(wait_gone(process.pid, 60) for process in others)
    reason = await yarn_world.ended(notebook, LATE_S)
    say(f"{reason!r} after", killed_at)
    assert "its container was killed" in reason
    await yarn_world.restart(notebook)
    assert container_of(notebook.pid) != before
    await yarn_world.lives(notebook)


async def test_a_container_ended_by_hand(yarn_world: YarnWorld) -> None:
    ended, kept = await yarn_world.open(), await yarn_world.open()
    kernel = yarn_world.processes(ended)[-1]
    ended_at = time.monotonic()
    yarn_world.end_container(ended)
    reason = await yarn_world.ended(ended, LATE_S)
    say(f"{reason!r} after", ended_at)
    assert "container was killed" in reason
    assert wait_gone(kernel.pid, 60)
    await yarn_world.restart(ended)
    await yarn_world.lives(ended, kept)


@pytest.mark.long
async def test_the_application_ended_by_hand(yarn_world: YarnWorld) -> None:
    """An operator ends the application. Its kernels end, and the next start submits another application."""
    notebooks = [await yarn_world.open(), await yarn_world.open()]
    (before,) = [master["id"] for master in yarn_world.masters()]
    ended_at = time.monotonic()
    yarn_world.end_application(before)
    for notebook in notebooks:
        reason = await yarn_world.ended(notebook, LATE_S)
        say(f"{reason!r} after", ended_at)
        assert "roost's application" in reason
    restarted_at = time.monotonic()
    for notebook in notebooks:
        await yarn_world.restart(notebook)
    say("both run again after", restarted_at)
    assert before not in [master["id"] for master in yarn_world.masters()]
    await yarn_world.lives(*notebooks)


async def test_the_master(yarn_world: YarnWorld) -> None:
    """Kernels live, the master's next attempt takes over, and starts go on, even if the service dies as well."""
    notebooks = [await yarn_world.open(gpus=1)]
    await yarn_world.until_known(*notebooks)
    for is_service_killed in (False, True):
        yarn_world.kill_masters()
        killed_at = time.monotonic()
        if is_service_killed:
            yarn_world.kill_service()
        notebooks.append(await yarn_world.open())
        say("next kernel after", killed_at)
        await yarn_world.lives(*notebooks)
        await yarn_world.until_known(*notebooks)
    stopped = notebooks.pop(0)
    await stopped.close()
    yarn_world.opened.remove(stopped)
    await until(lambda: len(yarn_world.held()) == 2, "the container of a stopped kernel ends")
    await yarn_world.lives(*notebooks)


@pytest.mark.long
async def test_the_master_with_a_new_kernel(yarn_world: YarnWorld) -> None:
    """If a master ends, YARN may end a container that is younger than a heartbeat. Then its owner reads the reason."""
    notebook = await yarn_world.open()
    yarn_world.kill_masters()
    killed_at = time.monotonic()
    other = await yarn_world.open()
    say("next kernel after", killed_at)
    if (await yarn_world.kernel_of(notebook)).state == "exited":
        reason = await yarn_world.ended(notebook, LATE_S)
        say(f"{reason!r} after", killed_at)
        await yarn_world.restart(notebook)
    await yarn_world.lives(notebook, other)


@pytest.mark.parametrize("away_s", [3.0, pytest.param(20.0, marks=pytest.mark.long)])
async def test_the_resource_manager(yarn_world: YarnWorld, away_s: float) -> None:
    """Kernels live. New starts are refused, and starts that wait go on once the ResourceManager is back."""
    kept, stopped = await yarn_world.open(gpus=1), await yarn_world.open(**SPARE, cpus=2)
    waiting = yarn_world.notebook(**SPARE, launch_timeout=200)
    opening = asyncio.create_task(waiting.open())
    say(await yarn_world.waits_for("room"))
    await yarn_world.until_known(kept, stopped)
    before = held_by(await yarn_world.kernel_of(kept))
    yarn_world.cluster.kill("rm1")
    killed_at = time.monotonic()
    try:
        assert "YARN is away, its kernels live on" in await yarn_world.refusal(cpus=0.1)
        say("known to be away after", killed_at)
        say(await yarn_world.waits_for("YARN is away"))
        findings = [
            found["what"] for found in await yarn_world.service().doctor() if found["level"] == "error"
        ]
        assert len(findings) == 1, findings
        assert_plain(findings[0])
        with pytest.raises(BackendUnavailable) as refused:
            await yarn_world.notebook().open()
        assert_plain(refused.value.user_message)
        assert await kept.value("mine") == "42"
        await kept.interrupt()
        ending = asyncio.create_task(stopped.close())
        await asyncio.sleep(killed_at + away_s - time.monotonic())
        assert await kept.value("mine") == "42"
    finally:
        yarn_world.cluster.start("rm1")
    back_at = time.monotonic()
    await yarn_world.has_room(cpus=0.1, within_s=120)
    say("room again after", back_at)
    with contextlib.suppress(RoostError):
        await ending
    await yarn_world.close_stopped(stopped)
    await opening
    say("the start that waited runs after", back_at)
    await waiting.run("mine = 42")
    assert held_by(await yarn_world.kernel_of(kept)) == before
    other = await yarn_world.open()
    say("next kernel after", back_at)
    await until(lambda: len(yarn_world.held()) == 3, "the container of the stopped kernel ends")
    await yarn_world.lives(kept, waiting, other)
    await yarn_world.restart(kept)
