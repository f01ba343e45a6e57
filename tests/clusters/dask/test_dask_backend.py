"""Tests of promises that only the Dask backend makes.

The backend's plugins in Dask hold its settings, and workers may change their resources. A machine that cannot run an
agent keeps no lease. A lease is given up if another kernel took its slice during an outage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.dask.lease_records import noted
from roost.launchers.daemon.private_files import read_json
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Placement, Request, get_policy
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend
from roost.scheduler.backends.dask.manager import create
from roost.scheduler.backends.dask.settings import RoostDaskBackend
from roost.scheduler.errors import BackendUnavailable
from roost.testing import backend_context
from roost.testing.clusters.dask_machines import DaskMachines, Machine, why_not
from roost.testing.deadlines import until

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install '.[dask]'")

HALF = Request(gpus=0.5, resources={"T4": 0.5})
BOTH = Request(gpus=2, resources={"T4": 2})
OWNER = Owner(user="ada", application="test", host="here", pid=1, process_started_at=1.0, can_adopt=True)


@asynccontextmanager
async def joined(
    address: str, folder: Path, grace_s: float = 300.0, python: str = ""
) -> AsyncIterator[Backend]:
    agents = Agents()
    settings = RoostDaskBackend(address=address, manager_grace_s=grace_s, python=python)
    backend = create(settings, backend_context(agents, folder))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()
        await agents.close()


async def taken(backend: Backend, kernel_id: str, request: Request) -> Lease:
    async def find_placement() -> Placement | None:
        return get_policy("pack").place(request, await backend.snapshot()).placement

    # Workers report freed resources a moment later.
    placement = await until(find_placement, f"there is room for {request.describe()}")
    return await backend.claim(wanted(kernel_id, request, placement))


def wanted(kernel_id: str, request: Request, placement: Placement) -> Lease:
    """Return the lease of a kernel at its placement, ready to be claimed."""
    return Lease(
        id=f"roost:{kernel_id}:s/1",
        kernel_id=kernel_id,
        owner=OWNER,
        request=request,
        node_id=placement.node_id,
        device_ids=placement.device_ids,
    )


async def leases_of(backend: Backend) -> list[Lease]:
    return list((await backend.leases()).leases)


def operator(cluster: DaskMachines) -> Any:
    """Return an asynchronous client of Dask itself, as an operator uses one."""
    return distributed.Client(cluster.address, asynchronous=True, set_as_default=False)


def graces(cluster: DaskMachines) -> set[float]:
    """Return the graces in seconds for which the machines' agents wait for a lost cluster."""
    files = Path(cluster.environment["ROOST_RUNTIME_DIR"]).glob("agent-dask-*/manager.json")
    return {known["managers"][-1]["grace_s"] for file in files if (known := read_json(file)) is not None}


@pytest.mark.parametrize("missing", [None, "worker_plugins", "nanny_plugins"])
async def test_a_service_with_other_settings_or_without_all_plugins_installs_them(
    dask_cluster: DaskMachines, module_runtime_dir: Path, tmp_path: Path, missing: str | None
) -> None:
    async with joined(dask_cluster.address, tmp_path) as first:
        lease = await taken(first, "k", HALF)
        if missing is not None:
            async with operator(dask_cluster) as dask:
                await dask.run_on_scheduler(
                    lambda dask_scheduler: getattr(dask_scheduler, missing).pop("roost")
                )
    async with joined(dask_cluster.address, tmp_path, 300.0 if missing else 77.0) as second:

        async def is_held() -> bool:  # a lease is pending while its agent is slow to answer
            return await leases_of(second) == [lease]

        await until(is_held, "the second service has the lease", 30)
        assert await second.warm_up() == 3
        grace_s = 300.0 if missing else 77.0  # nannies send it to the agents
        await until(
            lambda: graces(dask_cluster) == {grace_s},
            lambda: f"all agents have the grace: {graces(dask_cluster)}",
            30,
        )
        async with operator(dask_cluster) as dask:
            assert (await dask.scheduler.roost_hello())["is_whole"]
        await second.release(lease)
        assert await leases_of(second) == []


async def test_a_lease_that_another_kernel_took_during_an_outage_is_given_up(
    dask_cluster: DaskMachines, module_runtime_dir: Path, tmp_path: Path
) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    for folder in (mine, others):
        folder.mkdir(mode=0o700)
    async with joined(dask_cluster.address, mine) as before:
        lease = await taken(before, "k", BOTH)
    async with joined(dask_cluster.address, others) as other:
        async with operator(dask_cluster) as dask:
            await dask.scheduler.roost_release(lease_id=lease.id)  # as if Dask's scheduler had been away
        others_lease = await taken(other, "other", BOTH)
        async with joined(dask_cluster.address, mine) as after:

            async def is_given_up() -> bool:
                return noted(Path(dask_cluster.environment["ROOST_RUNTIME_DIR"])) == [others_lease.id]

            await until(is_given_up, "only the other lease is left")
            assert [each.id for each in await leases_of(after)] == [others_lease.id]
        await other.release(others_lease)


async def test_a_machine_that_cannot_run_an_agent_keeps_no_lease(
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

            await until(is_known, "the node cannot run agents")
            placement = Placement(node_id=name, device_ids=("0",))
            with pytest.raises(BackendUnavailable, match="/nonexistent cannot be run"):
                await backend.claim(wanted("k", Request(gpus=1), placement))
            (bare,) = await leases_of(backend)
            await backend.release(bare)
            assert await leases_of(backend) == []
        async with joined(cluster.address, tmp_path) as mended:
            assert await mended.warm_up() == 1

            async def has_room() -> bool:
                snapshot = await mended.snapshot()
                return get_policy("pack").place(Request(gpus=1), snapshot).placement is not None

            await until(has_room, "the node has room")


async def test_the_resources_of_a_worker_may_change(
    dask_cluster: DaskMachines, module_runtime_dir: Path, tmp_path: Path
) -> None:
    async with joined(dask_cluster.address, tmp_path) as backend, operator(dask_cluster) as client:
        lease = await taken(backend, "k", HALF)
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

            await until(is_seen, f"the worker has {count} GPUs")
            seen = await client.run_on_scheduler(
                lambda dask_scheduler: [dask_scheduler.workers[name].resources["GPU"] for name in workers]
            )
            assert seen == [count - 0.5]
        await backend.release(lease)
