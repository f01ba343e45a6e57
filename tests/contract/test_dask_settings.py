"""What travels with roost's plugins into a Dask cluster: who joins with other settings brings his own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dask_machines import DaskMachines

from roost.launchers.files import read_json
from roost.launchers.messages import Owner
from roost.placement import Request, policy
from roost.scheduler.agents import Agents
from roost.scheduler.backends.dask import DaskBackend
from roost.scheduler.config import DaskSettings, Settings

OWNER = Owner(user="ada", application="test", host="here", pid=1, process_started_at=1.0, can_adopt=True)


@asynccontextmanager
async def joined(address: str, folder: Path, grace_s: float) -> AsyncIterator[DaskBackend]:
    agents = Agents()
    settings = Settings(dask=DaskSettings(address=address, manager_grace_s=grace_s))
    backend = DaskBackend(settings, agents, folder=folder)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()
        await agents.close()


def graces(cluster: DaskMachines) -> set[float]:
    """How long the agents of the machines wait for a cluster that is lost."""
    files = Path(cluster.environment["ROOST_RUNTIME_DIR"]).glob("agent-dask-*/manager.json")
    return {known["managers"][-1]["grace_s"] for file in files if (known := read_json(file)) is not None}


@pytest.mark.parametrize("missing", [None, "worker_plugins", "nanny_plugins"])
async def test_who_joins_with_other_settings_or_finds_half_of_the_plugins_installs_them(
    dask_cluster: DaskMachines, module_runtime_dir: Path, tmp_path: Path, missing: str | None
) -> None:
    request = Request(gpus=0.5, resources={"T4": 0.5})
    async with joined(dask_cluster.address, tmp_path, 300.0) as first:
        placement = policy("pack").place(request, await first.snapshot()).placement
        assert placement is not None
        lease = await first.lease(request, placement, lease_id="roost:k:s/1", kernel_id="k", owner=OWNER)
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
