"""Faults of YARN clusters with settings of their own: failover, and another cluster at the address."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_world import assert_plain, say, until
from hadoop_nodes import HadoopNodes, Machine, why_not
from world import wait_gone
from yarn_world import World, fault_settings, opened

pytestmark = [pytest.mark.fault_long, pytest.mark.timeout(900)]

LATE_S = 60.0
"""How long a busy machine may need for what takes a few seconds."""
OpenWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def open_world(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_environment: None
) -> OpenWorld:
    """Start a cluster of two nodes with these settings of Hadoop, and roost on it."""
    if reason := why_not():
        pytest.skip(reason)

    @asynccontextmanager
    async def start(
        settings: dict[str, object], *, has_standby: bool = False, **own: Any
    ) -> AsyncIterator[World]:
        changes = {**fault_settings(tmp_path), **settings}
        machines = Machine(vcores=4), Machine(vcores=4)
        with HadoopNodes(*machines, settings=changes, has_standby=has_standby) as cluster:
            async with opened(World(cluster, runtime_dir, tmp_path, monkeypatch, **own)) as world:
                yield world

    return start


async def test_another_cluster_at_the_address(open_world: OpenWorld) -> None:
    """The ResourceManager has lost its state. The old master ends after its grace, and owners read why."""
    async with open_world({}, manager_grace_s=3.0) as world:
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


async def test_failover(open_world: OpenWorld) -> None:
    """Kernels live, starts go on, and the next service finds the active ResourceManager too."""
    async with open_world({}, has_standby=True) as world:
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
        await until(lambda: len(world.masters()) == 1, "another application was submitted", LATE_S)


async def open_soon(world: World) -> Any:
    """Open a notebook as soon as the service has found the active ResourceManager."""
    await world.has_room(cpus=0.1, within_s=120)
    return await world.open()
