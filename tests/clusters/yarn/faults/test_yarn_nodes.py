"""NodeManagers that die, fall silent, are unhealthy or are decommissioned under kernels in YARN's containers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from kit.clusters.faults import say, until
from kit.clusters.yarn.faults import EXPIRY_S, SPARE, YarnWorld, signal_all
from kit.jupyter.notebook import Notebook, held_by
from kit.machine.daemons import wait_gone

pytestmark = pytest.mark.long

LATE_S = 60.0
"""How long a busy machine may need for a step that usually takes a few seconds."""
LOST_S = EXPIRY_S + LATE_S
DECOMMISSION_S = 15
"""How long YARN waits for the containers of a node that is being decommissioned."""


async def test_a_node_manager_with_recovery(yarn_world: YarnWorld) -> None:
    notebook = await yarn_world.open(**SPARE)
    before = held_by(await yarn_world.kernel_of(notebook))
    await yarn_world.until_known(notebook)
    yarn_world.cluster.kill("nm3")
    try:
        await asyncio.sleep(3)
        assert await notebook.value("mine") == "42"
        await notebook.interrupt()
    finally:
        yarn_world.cluster.start("nm3")
    started_at = time.monotonic()
    other = await yarn_world.open(**SPARE)
    say("next kernel after", started_at)
    await yarn_world.lives(notebook, other)
    assert held_by(await yarn_world.kernel_of(notebook)) == before


@pytest.mark.parametrize("is_service_away", [False, True])
async def test_a_node_manager_without_recovery(yarn_world: YarnWorld, is_service_away: bool) -> None:
    """A restarted NodeManager knows no containers. YARN gives them up, so roost ends their kernels."""
    with no_recovery(yarn_world, "nm3"):
        notebook, kept = await yarn_world.open(**SPARE), await yarn_world.open()
        await yarn_world.until_known(notebook, kept)
        processes = yarn_world.processes(notebook)
        yarn_world.cluster.kill("nm3")
        await asyncio.sleep(2)
        assert await notebook.value("mine") == "42"
        if is_service_away:
            yarn_world.kill_service()
        yarn_world.cluster.start("nm3")
        started_at = time.monotonic()
        await asyncio.to_thread(yarn_world.cluster.await_node, "nm3")
        await gone(processes)
        say("its processes are gone after", started_at)
        if not is_service_away:
            reason = await yarn_world.ended(notebook, LATE_S)
            say(f"{reason!r} after", started_at)
            assert "does not answer YARN" in reason or "has forgotten its container" in reason
        await yarn_world.has_room(**SPARE, within_s=LATE_S)
        await yarn_world.restart(notebook)
        await yarn_world.lives(notebook, kept)
        await yarn_world.close()  # before the daemon forgets its containers again
        yarn_world.opened.clear()


async def test_a_frozen_node(yarn_world: YarnWorld) -> None:
    """The machine answers nobody until YARN has given it up. Its old kernels end when it is back."""
    notebook = await yarn_world.open(**SPARE)
    kept = await yarn_world.open()
    await yarn_world.until_known(notebook, kept)
    processes = yarn_world.processes(notebook)
    with frozen(yarn_world, "nm3", processes):
        frozen_at = time.monotonic()
        reason = await yarn_world.ended(notebook, LOST_S)
        say(f"{reason!r} after", frozen_at)
        assert "does not answer YARN" in reason
        assert await kept.value("mine") == "42"
    back_at = time.monotonic()
    await gone(processes)
    say("its old processes are gone after", back_at)
    await yarn_world.has_room(**SPARE, within_s=LATE_S)
    await yarn_world.restart(notebook)
    say("the next kernel runs there after", back_at)
    await yarn_world.lives(notebook, kept)


async def test_a_silent_node_manager(yarn_world: YarnWorld) -> None:
    """Only YARN's daemon on the node is silent. roost ends the kernel once YARN has given the node up."""
    notebook = await yarn_world.open(**SPARE)
    await yarn_world.until_known(notebook)
    processes = yarn_world.processes(notebook)
    yarn_world.cluster.pause("nm3")
    paused_at = time.monotonic()
    try:
        reason = await yarn_world.ended(notebook, LOST_S)
        say(f"{reason!r} after", paused_at)
        assert "does not answer YARN" in reason
        await gone(processes)
        say("its processes are gone after", paused_at)
    finally:
        yarn_world.cluster.resume("nm3")
    await yarn_world.has_room(**SPARE, within_s=LATE_S)
    await yarn_world.restart(notebook)
    await yarn_world.lives(notebook)


async def test_a_kernel_of_a_frozen_node_is_restarted_elsewhere(yarn_world: YarnWorld) -> None:
    """roost never mistakes the old kernel on the frozen node for the new kernel."""
    notebook = await open_away_from_masters(yarn_world)
    host, processes = (await yarn_world.kernel_of(notebook)).node_id, yarn_world.processes(notebook)
    (node,) = [name for name in yarn_world.cluster.machines if yarn_world.cluster.address_of(name) == host]
    await yarn_world.until_known(notebook)
    with frozen(yarn_world, node, processes):
        await yarn_world.ended(notebook, LOST_S)
        await yarn_world.restart(notebook)
        lease = held_by(await yarn_world.kernel_of(notebook))
        assert host not in lease
    await gone(processes)
    await asyncio.to_thread(yarn_world.cluster.await_node, node)
    await until(lambda: len(yarn_world.held()) == 1, "the old container ends", LATE_S)
    await yarn_world.lives(notebook)
    assert held_by(await yarn_world.kernel_of(notebook)) == lease


async def test_an_unhealthy_node(yarn_world: YarnWorld) -> None:
    notebook, kept = await yarn_world.open(**SPARE), await yarn_world.open()
    await yarn_world.until_known(notebook, kept)
    processes = yarn_world.processes(notebook)
    mark = yarn_world.cluster.layout.configuration("nm3") / "unhealthy"
    mark.touch()
    marked_at = time.monotonic()
    try:
        reason = await yarn_world.ended(notebook, LATE_S)
        say(f"{reason!r} after", marked_at)
        assert "is unhealthy" in reason
        assert "the disk is full" in reason
        await gone(processes)
        refusal = await yarn_world.refusal(**SPARE)
        say(refusal)
        assert "is unhealthy" in refusal
    finally:
        mark.unlink()
    healthy_at = time.monotonic()
    await yarn_world.has_room(**SPARE, within_s=LATE_S)
    say("room again after", healthy_at)
    await yarn_world.restart(notebook)
    await yarn_world.lives(notebook, kept)


async def test_a_node_that_is_decommissioned(yarn_world: YarnWorld) -> None:
    """The node takes no new kernels. Its kernels go on until YARN ends them with the node."""
    notebook = await yarn_world.open(**SPARE)
    await yarn_world.until_known(notebook)
    processes = yarn_world.processes(notebook)
    yarn_world.exclude("nm3")
    try:
        refresh = ("-refreshNodes", "-g", str(DECOMMISSION_S), "-server")
        await asyncio.to_thread(yarn_world.cluster.admin, *refresh)
        drained_at = time.monotonic()
        refusal = await yarn_world.refusal(**SPARE)
        say(refusal)
        assert "is being decommissioned" in refusal
        assert await notebook.value("mine") == "42"
        reason = await yarn_world.ended(notebook, DECOMMISSION_S + LATE_S)
        say(f"{reason!r} after", drained_at)
        assert "was decommissioned" in reason
        await gone(processes)
    finally:
        yarn_world.exclude()
        await asyncio.to_thread(yarn_world.cluster.admin, "-refreshNodes")
        yarn_world.cluster.kill("nm3")  # it may have left by itself
        yarn_world.cluster.start("nm3")
        await asyncio.to_thread(yarn_world.cluster.await_answer, "nm3")
    await yarn_world.has_room(**SPARE, within_s=LATE_S)
    await yarn_world.restart(notebook)
    await yarn_world.lives(notebook)


async def open_away_from_masters(world: YarnWorld) -> Notebook:
    """Open kernels until one is on a node without a master. Close the others, so that there is room elsewhere."""
    notebooks = [await world.open()]
    while (await world.kernel_of(notebooks[-1])).node_id in world.cpus_of_backend():
        assert len(notebooks) < 4, "all kernels are on nodes with masters"
        notebooks.append(await world.open())
    for notebook in notebooks[:-1]:
        await notebook.close()
        world.opened.remove(notebook)
    return notebooks[-1]


@contextmanager
def frozen(world: YarnWorld, node: str, processes: list[psutil.Process]) -> Iterator[None]:
    """Stop a node's daemon and these processes in its containers for a while."""
    world.cluster.pause(node)
    signal_all(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(processes, signal.SIGCONT)
        world.cluster.resume(node)


@contextmanager
def no_recovery(world: YarnWorld, node: str) -> Iterator[None]:
    """Let a NodeManager forget its containers when it is started again."""
    start_again(world, node, is_recovering="false")
    try:
        yield
    finally:
        start_again(world, node, is_recovering="true")


def start_again(world: YarnWorld, node: str, *, is_recovering: str) -> None:
    world.set(node, "yarn.nodemanager.recovery.enabled", is_recovering)
    world.cluster.kill(node)
    world.cluster.start(node)
    world.cluster.await_answer(node)


async def gone(processes: list[psutil.Process]) -> None:
    """Check that these processes end."""
    for process in processes:
        assert await asyncio.to_thread(wait_gone, process.pid, LATE_S), process
