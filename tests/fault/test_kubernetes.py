"""kill -9 of each part under kernels in pods: which kernels live on, which end, and for which reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from kubelets import Kubelets, why_not
from kubernetes_world import (
    MACHINES,
    SPARE,
    World,
    kernel_of,
    prepare,
    say,
    service,
)
from leftovers import private_runtime_dir
from notebook import held_by
from world import settle, wait_gone

from roost.scheduler.client.client import disconnect

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(private_environment: None) -> Iterator[Kubelets]:
    """Start the cluster of this module, whose tests kill its parts."""
    if reason := why_not():
        pytest.skip(reason)
    with private_runtime_dir(), Kubelets(*MACHINES) as started:
        prepare(started)
        yield started


@pytest.fixture
async def world(
    runtime_dir: Path, cluster: Kubelets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    world = World(cluster, runtime_dir, tmp_path, monkeypatch)
    with world.proxy:
        yield world
        try:
            await world.close()
        except BaseException:
            for log in runtime_dir.glob("scheduler*/log*"):
                print(f"--- {log}", *log.read_text().splitlines()[-80:], sep="\n")
            raise
        finally:
            disconnect()
            settle(runtime_dir)


async def test_the_scheduler_service(world: World) -> None:
    notebook = await world.open(gpus=1)
    before = held_by(await kernel_of(notebook))
    world.kill_service()
    killed_at = time.monotonic()
    await world.lives(notebook)
    say("found again after", killed_at)
    assert held_by(await kernel_of(notebook)) == before
    await notebook.interrupt()
    await world.lives(notebook)


async def test_the_service_while_a_pod_is_pending(world: World) -> None:
    await service().up()
    world.cluster.pause("n2/kubelet")
    notebook = world.notebook(labels=SPARE)
    try:
        opening = asyncio.create_task(notebook.open())
        say(await world.waits_for("its"))
        lease = (await service().kernels())[0].lease_id
        for _ in range(2):
            world.kill_service()
            await asyncio.sleep(1)
    finally:
        world.cluster.resume("n2/kubelet")
    await opening
    await notebook.run("mine = 42")
    await world.lives(notebook)
    assert (await kernel_of(notebook)).lease_id == lease


async def test_the_agent(world: World) -> None:
    notebook = await world.open()
    agent, *others = await world.processes(notebook)
    uid = (await world.pod(notebook))["metadata"]["uid"]
    killed_at = time.monotonic()
    agent.kill()
    assert all(wait_gone(process.pid, 2) for process in others)
    reason = await world.ended(notebook, 10)
    say(f"{reason!r} after", killed_at)
    assert "its agent ended with exit code 137" in reason
    await world.restart(notebook)
    assert (await world.pod(notebook))["metadata"]["uid"] != uid
    await world.lives(notebook)


async def test_a_pod_deleted_by_hand(world: World) -> None:
    notebook = await world.open()
    kernel = (await world.processes(notebook))[-1]
    deleted_at = time.monotonic()
    world.delete_pod(await world.pod(notebook))
    reason = await world.ended(notebook, 10)
    say(f"{reason!r} after", deleted_at)
    assert "its pod was deleted" in reason
    assert wait_gone(kernel.pid, 10)
    await world.restart(notebook)
    await world.lives(notebook)


async def test_a_watch_that_falls_silent(world: World) -> None:
    """A proxy swallows what the open connections carry. New connections work."""
    world.configure(watch_timeout_s=2.0)
    notebook = await world.open()
    say(f"{world.proxy.swallow()} connections fall silent")
    silent_at = time.monotonic()
    for process in await world.processes(notebook):
        process.kill()  # nobody but Kubernetes can report this
    reason = await world.ended(notebook, 20)
    say(f"{reason!r} after", silent_at)
    assert "its agent ended with exit code 137" in reason
    opened_at = time.monotonic()
    await world.open()
    say("next kernel after", opened_at)
