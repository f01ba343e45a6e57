"""No kernel without a lease and no lease without a kernel, whatever happens in whichever order."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeWorld, fake_world
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import until

KERNELS = 12


async def someone(w: FakeWorld, seed: int, *, kills_agents: bool) -> None:
    """Start, restart, cancel, stop and kill random kernels, while other tasks do the same to them."""
    chance = random.Random(seed)
    for turn in range(15):
        kernel_id = f"k{chance.randrange(KERNELS)}"
        gpus = chance.choice([0, 0.25, 0.5, 1])
        launch_id = f"{seed}.{turn}"
        deed = chance.choice(["start", "start", "cancel", "stop", "end"])
        try:
            if deed == "start":
                start = w.start(kernel_id, launch_id, gpus=gpus, cpus=0.5, launch_timeout_s=0.2)
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() / 100)
                    await w.scheduler.cancel(kernel_id, launch_id)
                await start
            elif deed == "cancel":
                await w.scheduler.cancel(kernel_id)
            elif deed == "stop":
                await w.scheduler.stop(kernel_id, 0)
            else:
                for fake in w.fakes:
                    if kernel_id in fake.kernels and fake.kernels[kernel_id].is_running:
                        fake.end(kernel_id)
        except RoostError:
            pass
        if chance.random() < 0.05:
            fake = chance.choice(w.fakes)
            fake.fail("launch", "kernel_died")
            await asyncio.sleep(0.01)
            fake.failures.clear()
        if kills_agents and chance.random() < 0.1:
            await chance.choice(w.fakes).restart()


def agree(w: FakeWorld) -> None:
    held = {kernel.id: kernel for kernel in w.scheduler.kernels()}
    leases = {lease_id.split(":")[1]: lease_id for lease_id in w.leases()}
    assert {kernel_id: kernel.lease_id for kernel_id, kernel in held.items()} == leases
    processes = {kernel_id for fake in w.fakes for kernel_id, p in fake.kernels.items() if p.is_running}
    assert {kernel.id for kernel in held.values() if kernel.state == "running"} == processes


async def until_settled(w: FakeWorld) -> None:
    """Ask `doctor` until it finds no problem."""
    found: list[dict[str, str]] = []

    async def is_settled() -> bool:
        nonlocal found
        found = await w.scheduler.doctor()
        return found[0]["level"] == "ok"

    await until(is_settled, lambda: f"doctor finds no problem: {found}", 10)


@pytest.mark.parametrize("kills_agents", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_both_sides_agree(tmp_path: Path, seed: int, kills_agents: bool) -> None:
    settings = Settings(reserve_after_s=0.05)
    async with fake_world(tmp_path, nodes=("a", "b"), gpus=2, cpus=6, settings=settings) as w:
        await asyncio.gather(
            *(someone(w, seed * 100 + i, kills_agents=kills_agents and i == 0) for i in range(8))
        )
        await until_settled(w)
        agree(w)
        for kernel in w.scheduler.kernels():
            ended: Kernel = await w.scheduler.stop(kernel.id, 0)
            assert ended.state == "exited"
        assert w.leases() == []
        assert w.scheduler.is_idle()
        snapshot = await w.backend.snapshot()
        assert [snapshot.node(name).gpus_promised for name in ("a", "b")] == [0, 0]
