"""Faults under kernels in YARN's containers: which kernels live on, which end, and for which reason."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cluster_world import say, show_logs
from hadoop_nodes import HadoopNodes, why_not
from notebook import held_by
from world import settle
from yarn_world import MACHINES, World

from roost.scheduler.client.client import disconnect

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(private_environment: None) -> Iterator[HadoopNodes]:
    """Start the cluster of this module, whose tests kill its parts."""
    if reason := why_not():
        pytest.skip(reason)
    with HadoopNodes(*MACHINES) as started:
        yield started


@pytest.fixture
async def world(
    runtime_dir: Path, cluster: HadoopNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    with World(cluster, runtime_dir, tmp_path, monkeypatch) as world:
        yield world
        try:
            with show_logs(runtime_dir):
                await world.close()
        finally:
            disconnect()
            settle(runtime_dir)
            world.end_all()


async def test_the_scheduler_service(world: World) -> None:
    notebook = await world.open(gpus=1)
    before = held_by(await world.kernel_of(notebook))
    world.kill_service()
    began = time.monotonic()
    await world.lives(notebook)
    say("read back after", began)
    assert held_by(await world.kernel_of(notebook)) == before


async def test_a_container_ended_by_its_operator(world: World) -> None:
    ended, kept = await world.open(), await world.open()
    began = time.monotonic()
    world.end_container(ended)
    reason = await world.ended(ended, within_s=20)
    say(f"{reason!r} after", began)
    assert "container was killed" in reason
    await world.lives(kept)
