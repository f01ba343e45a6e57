"""What only the Dask backend promises, besides `test_backend`: settings that travel with its plugins, workers that
change, machines without an agent, kernels whose place was taken while nobody looked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dask_machines import DaskMachines, Machine, why_not

from roost.launchers.daemon.private_files import read_json
from roost.launchers.protocol.messages import Owner
from roost.placement import Placement, Request, get_policy
from roost.scheduler.backends.base import Lease
from roost.scheduler.backends.dask.backend import DaskBackend
from roost.scheduler.config.settings import DaskSettings, Settings
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.errors import BackendUnavailable

HALF = Request(gpus=0.5, resources={"T4": 0.5})
BOTH = Request(gpus=2, resources={"T4": 2})
OWNER = Owner(user="ada", application="test", host="here", pid=1, process_started_at=1.0, can_adopt=True)


@asynccontextmanager
async def joined(
    address: str, folder: Path, grace_s: float = 300.0, python: str = ""
) -> AsyncIterator[DaskBackend]:
    agents = Agents()
    settings = Settings(dask=DaskSettings(address=address, manager_grace_s=grace_s, python=python))
    backend = DaskBackend(settings, agents, folder=folder)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()
        await agents.close()


async def taken(backend: DaskBackend, kernel_id: str, request: Request) -> Lease:
    give_up_at = time.monotonic() + 5
    while (decision := get_policy("pack").place(request, await backend.snapshot())).placement is None:
        assert time.monotonic() < give_up_at, decision.reason
        await asyncio.sleep(0.05)  # workers tell a moment later what is free
    return await backend.lease(
        request, decision.placement, lease_id=f"roost:{kernel_id}:s/1", kernel_id=kernel_id, owner=OWNER
    )


async def until(holds: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> None:
    give_up_at = time.monotonic() + within_s
    while not await holds():
        assert time.monotonic() < give_up_at, "too late"
        await asyncio.sleep(0.05)


def graces(cluster: DaskMachines) -> set[float]:
    """How long the agents of the machines wait for a cluster that is lost."""
    files = Path(cluster.environment["ROOST_RUNTIME_DIR"]).glob("agent-dask-*/manager.json")
    return {known["managers"][-1]["grace_s"] for file in files if (known := read_json(file)) is not None}


@pytest.mark.parametrize("missing", [None, "worker_plugins", "nanny_plugins"])
async def test_who_joins_with_other_settings_or_finds_half_of_the_plugins_installs_them(
    dask_cluster: DaskMachines, module_runtime_dir: Path, tmp_path: Path, missing: str | None
) -> None:
    async with joined(dask_cluster.address, tmp_path) as first:
        lease = await taken(first, "k", HALF)
        if missing is not None:
            await first._driver._client.run_on_scheduler(
                lambda dask_scheduler: getattr(dask_scheduler, missing).pop("roost")
            )
    async with joined(dask_cluster.address, tmp_path, 300.0 if missing else 77.0) as second:
        assert await second.leases() == [lease]
        assert await second.up() == 3
        give_up_at = time.monotonic() + 10
        while graces(dask_cluster) != {300.0 if missing else 77.0}:  # nannies tell agents meanwhile
            assert time.monotonic() < give_up_at, graces(dask_cluster)
            await asyncio.sleep(0.05)
        answer = await second._driver.ask("roost_hello")
        assert answer["is_whole"]
        await second.release(lease)
        assert await second.leases() == []


async def test_a_place_that_was_taken_while_nobody_looked_is_given_up_with_what_runs_in_it(
    dask_cluster: DaskMachines, module_runtime_dir: Path, tmp_path: Path
) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    for folder in (mine, others):
        folder.mkdir()
    async with joined(dask_cluster.address, mine) as before:
        lease = await taken(before, "k", BOTH)
    async with joined(dask_cluster.address, others) as other:
        await other._driver.ask("roost_release", lease_id=lease.id)  # as if Dask's scheduler had been away
        others_lease = await taken(other, "other", BOTH)
        async with joined(dask_cluster.address, mine) as after:

            async def is_given_up() -> bool:
                held = await after._hosts.held_on(lease.node_id)
                return held is not None and [each.id for each in held] == [others_lease.id]

            await until(is_given_up)
            assert [each.id for each in await after.leases()] == [others_lease.id]
        await other.release(others_lease)


async def test_a_machine_on_which_no_agent_can_run_gets_nothing_and_keeps_nothing(
    module_runtime_dir: Path, tmp_path: Path
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    environment = {"ROOST_RUNTIME_DIR": str(module_runtime_dir)}
    with DaskMachines(Machine(cpus=2, gpus=1), environment=environment) as cluster:
        async with joined(cluster.address, tmp_path, python="/nonexistent") as backend:
            (name,) = (await backend.snapshot()).nodes

            async def is_known() -> bool:
                return "/nonexistent cannot be run" in (await backend.snapshot()).node(name).drains_because

            await until(is_known)
            placement = Placement(node_id=name, device_ids=("0",))
            with pytest.raises(BackendUnavailable, match="/nonexistent cannot be run"):
                await backend.lease(
                    Request(gpus=1), placement, lease_id="roost:k:s/1", kernel_id="k", owner=OWNER
                )
            (bare,) = await backend.leases()
            await backend.release(bare)
            assert await backend.leases() == []
        async with joined(cluster.address, tmp_path) as mended:
            assert await mended.up() == 1
            assert get_policy("pack").place(Request(gpus=1), await mended.snapshot()).placement is not None


async def test_what_a_worker_is_said_to_have_may_change(
    dask_cluster: DaskMachines, module_runtime_dir: Path, tmp_path: Path
) -> None:
    async with joined(dask_cluster.address, tmp_path) as backend:
        lease = await taken(backend, "k", HALF)
        client = backend._driver._client
        workers = await client.run_on_scheduler(
            lambda dask_scheduler: [
                w.address for w in dask_scheduler.workers.values() if w.host == lease.node_id
            ]
        )

        async def gpus() -> tuple[int, float]:
            node = (await backend.snapshot()).node(lease.node_id)
            return len(node.devices), node.gpus_promised

        async def change(dask_worker: Any, count: int) -> None:
            await dask_worker.set_resources(GPU=count)

        for count in (4, 1, 2):
            await client.run(change, count=count, workers=workers)

            async def is_seen(count: int = count) -> bool:
                return await gpus() == (count, 0.5)

            await until(is_seen)
            seen = await client.run_on_scheduler(
                lambda dask_scheduler: [dask_scheduler.workers[name].resources["GPU"] for name in workers]
            )
            assert seen == [count - 0.5]
        await backend.release(lease)
