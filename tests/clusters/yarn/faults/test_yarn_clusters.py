"""Faults of YARN clusters with settings of their own: failover, and another cluster at the address."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import Any

import pytest

from kit.clusters.faults import assert_plain, say, until
from kit.clusters.yarn.faults import OpenYarnWorld, YarnWorld
from kit.machine.daemons import wait_gone

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LATE_S = 60.0
"""How long a busy machine may need for a step that usually takes a few seconds."""
ROLLS = 4
"""How many times the keys of tokens roll before the test goes on. A server knows the last two keys only."""
_TOKENS = "yarn.resourcemanager.{}.master-key-rolling-interval-secs"
ROLLING = {
    **{_TOKENS.format(kind): 50 for kind in ("am-rm-tokens", "container-tokens", "nm-tokens")},
    "yarn.nm.liveness-monitor.expiry-interval-ms": 10_000,
    "yarn.am.liveness-monitor.expiry-interval-ms": 10_000,
}
"""The settings of a cluster whose keys roll as often as YARN allows with these expiry intervals."""


async def test_another_cluster_at_the_address(open_yarn_world: OpenYarnWorld) -> None:
    """The ResourceManager has lost its state. The old master ends after its grace, and owners read why."""
    async with open_yarn_world({}, manager_grace_s=3.0) as world:
        notebook = await world.open()
        (master,) = world.master_processes()
        processes = world.processes(notebook)
        for daemon in ("nm1", "nm2", "rm1"):  # a NodeManager would end the containers
            world.cluster.kill(daemon)
        shutil.rmtree(world.cluster.folder / "store")
        (world.cluster.folder / "store").mkdir()
        world.cluster.start("rm1")
        started_at = time.monotonic()
        reason = await world.ended(notebook, LATE_S)
        say(f"{reason!r} after", started_at)
        assert "YARN does not know roost's application" in reason
        assert all(wait_gone(process.pid, LATE_S) for process in processes)
        assert await asyncio.to_thread(wait_gone, master.pid, LATE_S)
        say("the old master has ended after", started_at)
        for daemon in ("nm1", "nm2"):
            world.cluster.start(daemon)
        await world.has_room(cpus=0.1, within_s=120)
        await world.restart(notebook)
        await world.lives(notebook)


async def test_a_resource_manager_that_does_not_recover_containers(open_yarn_world: OpenYarnWorld) -> None:
    """YARN ends all containers. Owners read the reason, nothing is left, and new kernels can start."""
    settings = {"yarn.resourcemanager.work-preserving-recovery.enabled": False}
    async with open_yarn_world(settings) as world:
        notebooks = [await world.open(), await world.open()]
        await world.until_known(*notebooks)
        processes = [process for notebook in notebooks for process in world.processes(notebook)]
        world.cluster.kill("rm1")
        world.cluster.start("rm1")
        started_at = time.monotonic()
        for notebook in notebooks:
            reason = await world.ended(notebook, LATE_S)
            say(f"{reason!r} after", started_at)
        assert all(wait_gone(process.pid, LATE_S) for process in processes)
        await world.has_room(cpus=0.1, within_s=120)
        say("room again after", started_at)
        for notebook in notebooks:
            await world.restart(notebook)
        say("both run again after", started_at)
        await world.lives(*notebooks)


async def test_keys_of_tokens_that_roll(open_yarn_world: OpenYarnWorld) -> None:
    """Kernels start and stop, and the master joins a ResourceManager that was started again."""
    async with open_yarn_world(ROLLING) as world:
        kept, stopped = await world.open(), await world.open()
        began = time.monotonic()
        await until(lambda: min(count_rolls(world)) > ROLLS, "the keys roll", 400.0)
        say(f"rolls {count_rolls(world)} after", began)
        began = time.monotonic()
        late = await world.open()
        say("a kernel starts in", began)
        began = time.monotonic()
        await stopped.close()
        world.opened.remove(stopped)
        await until(lambda: len(world.held()) == 2, "the container of the stopped kernel ends", 5.0)
        say("an old kernel stops in", began)
        await world.lives(kept, late)
        await world.until_known(kept, late)
        world.cluster.kill("rm1")
        assert "away" in await world.refusal(cpus=0.1)
        world.cluster.start("rm1")
        began = time.monotonic()
        latest = await open_soon(world)
        say("next kernel after", began)
        await world.lives(kept, late, latest)
        (master,) = world.masters()
        assert master["container"].split("_")[-2] == "01", "the first attempt has ended"


def count_rolls(world: YarnWorld) -> list[int]:
    """Return how many times each kind of key has rolled, perhaps including the ResourceManager's start."""
    log = world.cluster.log("rm1").read_text(errors="replace")
    return [
        log.count(f"Rolling master-key for {kind}")
        for kind in ("amrm-tokens", "container-tokens", "nm-tokens")
    ]


async def test_failover(open_yarn_world: OpenYarnWorld) -> None:
    """Kernels live, starts go on, and the next service finds the active ResourceManager too."""
    async with open_yarn_world({}, has_standby=True) as world:
        notebooks = [await world.open()]
        await world.until_known(*notebooks)
        began = time.monotonic()
        await asyncio.to_thread(world.cluster.fail_over, "rm2")
        say("the standby is active after", began)
        notebooks.append(await open_soon(world))
        say("next kernel after", began)
        await world.lives(*notebooks)
        world.kill_service()
        await world.lives(*notebooks)
        await world.until_known(*notebooks)
        began = time.monotonic()
        world.cluster.kill("rm2")
        assert_plain(await world.refusal(cpus=0.1))
        await asyncio.to_thread(world.cluster.fail_over, "rm1")
        say("the first one is active again after", began)
        notebooks.append(await open_soon(world))
        say("next kernel after", began)
        await world.lives(*notebooks)
        world.cluster.start("rm2")
        await until(lambda: len(world.masters()) == 1, "one application is left", LATE_S)


async def open_soon(world: YarnWorld) -> Any:
    """Open a notebook as soon as the service has found the active ResourceManager."""
    await world.has_room(cpus=0.1, within_s=120)
    return await world.open()
