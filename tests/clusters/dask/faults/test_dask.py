"""kill -9 of each part under kernels on a real Dask cluster: which kernels live on, which end, and for which reason."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

import kit
from kit.clusters.dask.lease_records import Slow, hold, most_at_once, sweep, whole
from kit.clusters.faults import ClusterWorld, read_command, until
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill, settle, wait_gone
from roost.scheduler.client.client import Client, connect, disconnect
from roost.testing import deadlines
from roost.testing.clusters.cluster_folder import END_TIMEOUT_S, answers
from roost.testing.clusters.dask_machines import DaskMachines, Machine, why_not
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import VARIABLE

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install '.[dask]'")

GRACE_S = 300.0
PAIR = Machine(cpus=2, gpus=2)
SPLIT = Machine(cpus=2, gpus=2, is_split=True)


class DaskWorld(ClusterWorld):
    """A Dask cluster with notebooks, and `dask`, the operator's Dask client."""

    def __init__(self, home: Path, folder: Path, cluster: DaskMachines) -> None:
        super().__init__("dask", home, folder)
        self.cluster = cluster
        self.dask: Any

    async def lives(self, *notebooks: Notebook) -> None:
        """Check that these kernels run, keep their variables and are the only ones with leases in any ledger."""
        kernels = await self.running(*notebooks)
        said = await whole(self.dask, self.home / "node", [kernel.lease_id for kernel in kernels])
        for kernel in kernels:
            machine, device_ids, _ = said["leases"][kernel.lease_id]
            assert (machine, device_ids) == (kernel.node_id, list(kernel.device_ids))

    async def ended(self, notebook: Notebook, within_s: float) -> str:
        """Wait until the kernel's process is gone and its owner knows. Return the reason."""
        pid = notebook.pid
        deadline = time.monotonic() + allow_s(within_s)
        reason = await notebook.ended(service(), within_s)
        assert wait_gone(pid, max(0.0, deadline - time.monotonic()))
        return reason

    def agents(self) -> list[psutil.Process]:
        return [one for one in self.cluster.processes() if "roost.launchers.agent.main" in read_command(one)]

    async def join(self) -> None:
        """Connect the operator's client, at first or again after `leave`."""
        self.dask = await distributed.Client(self.cluster.address, asynchronous=True, set_as_default=False)

    async def leave(self) -> None:
        """Disconnect the operator's client. Tests do so before they end Dask's scheduler."""
        await self.dask.close()


@pytest.fixture
async def start_world(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a cluster with a grace for kernels. At the end no kernel and no lease is left."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        worlds: list[DaskWorld] = []

        async def start(*machines: Machine, grace_s: float = GRACE_S, **environment: str) -> DaskWorld:
            (tmp_path / "jupyter_roost_config.json").write_text(
                json.dumps({"RoostDaskBackend": {"manager_grace_s": grace_s}})
            )
            monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
            environment = {
                VARIABLE: f"{runtime_dir}/node",
                "PYTHONPATH": str(Path(kit.__file__).parents[1]),
                **environment,
            }
            cluster = stack.enter_context(DaskMachines(*machines, environment=environment))
            monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.address)
            world = DaskWorld(runtime_dir, tmp_path, cluster)
            await world.join()
            worlds.append(world)
            return world

        yield start
        for world in worlds:
            for notebook in world.opened:
                await notebook.close()
            assert await service().kernels() == []
            if world.dask.status == "running" and world.dask.scheduler_info()["workers"]:
                await whole(world.dask, world.home / "node", [])
            await world.dask.close()
        disconnect()
        settle(runtime_dir)


def service() -> Client:
    return connect("dask")


Begin = Callable[..., Any]


async def test_a_worker_under_a_stream_of_tasks(start_world: Begin) -> None:
    world = await start_world(PAIR)
    (host,) = world.cluster.hosts
    notebook = await world.open(gpus=1)
    tasks = world.dask.map(hold, range(40), resources={"GPU": 1}, retries=5)
    for _ in range(2):
        await asyncio.sleep(1)
        await until(lambda: world.cluster.worker_pids(host.address), "the nanny starts a worker")
        await asyncio.to_thread(world.cluster.kill_worker, host.address)
    ran = await asyncio.wait_for(world.dask.gather(tasks), allow_s(60))
    assert most_at_once(ran) == 1, "a task had the kernel's GPU"
    await world.lives(notebook)


async def test_a_kernel_keeps_its_lease_where_the_login_has_a_runtime_folder(
    start_world: Begin, tmp_path: Path
) -> None:
    """The sweep of Dask's scheduler looks for leases where the agent keeps them, also without ROOST_RUNTIME_DIR."""
    tmp_path.chmod(0o700)
    world = await start_world(PAIR, **{VARIABLE: "", "XDG_RUNTIME_DIR": str(tmp_path)})
    notebook = await world.open(gpus=1)
    (agent,) = world.agents()
    folder = Path(agent.cmdline()[-2])
    try:
        await world.dask.run_on_scheduler(sweep)
        assert (await notebook.run("assert mine == 42"))["status"] == "ok"
        await notebook.close()
    finally:
        agent.kill()
        agent.wait(5)
        shutil.rmtree(folder)


async def test_a_restart_of_all_workers(start_world: Begin) -> None:
    """`client.restart()` forgets all tasks and starts the workers again, while new tasks wait for them."""
    world = await start_world(SPLIT)
    notebook = await world.open(gpus=1)
    for _ in range(2):
        await world.dask.restart(wait_for_workers=False)
        tasks = world.dask.map(hold, range(10), resources={"GPU": 1}, pure=False)
        ran = await asyncio.wait_for(world.dask.gather(tasks), allow_s(60))
        assert most_at_once(ran) == 1, "a task had the kernel's GPU"
        del tasks
        await world.lives(notebook)


async def test_nannies(start_world: Begin) -> None:
    """Kill the nanny of the kernel's device, then the other nanny of its machine."""
    world = await start_world(SPLIT, Machine(cpus=1))
    split = world.cluster.hosts[0].address
    notebook = await world.open(gpus=1)
    other = await world.open(cpus=0.5, gpus=1)
    (device,) = (await world.kernel_of(notebook)).device_ids
    await asyncio.to_thread(world.cluster.kill_nanny, split, int(device))
    await asyncio.sleep(3)
    assert await notebook.value("mine") == "42"
    await world.lives(notebook, other)
    await other.close()
    await asyncio.to_thread(world.cluster.kill_nanny, split, 1 - int(device))
    assert "its node has left the Dask cluster" in await world.ended(notebook, 10)


@pytest.mark.long
async def test_a_worker_without_a_nanny(start_world: Begin) -> None:
    world = await start_world(Machine(cpus=2, has_nanny=False), Machine(cpus=1))
    alone = world.cluster.hosts[0].address
    notebook = await world.open(cpus=2)
    await world.lives(notebook)
    await asyncio.to_thread(world.cluster.kill_worker, alone)
    assert "its node has left the Dask cluster" in await world.ended(notebook, 10)


async def test_the_agent(start_world: Begin) -> None:
    world = await start_world(PAIR)
    notebook = await world.open(gpus=0.5)
    (agent,) = world.agents()
    kill(agent.pid)
    others = await asyncio.gather(*(world.open(gpus=0.25) for _ in range(2)))  # at once: no start may fail
    await world.lives(notebook, *others)
    await notebook.restart()
    assert (await notebook.run("mine"))["ename"] == "NameError"


@pytest.mark.parametrize("away_s", [0.0, pytest.param(20.0, marks=pytest.mark.long)])
async def test_the_scheduler_of_dask(start_world: Begin, away_s: float) -> None:
    """Dask's scheduler comes back at its address. The nannies have ended, and start again one after the other."""
    world = await start_world(PAIR, SPLIT)
    notebooks = [await world.open(gpus=gpus) for gpus in (2, 1, 0.5)]
    await world.leave()
    world.cluster.kill_scheduler()
    gone_at = time.monotonic()
    for notebook in notebooks:
        assert await notebook.value("mine") == "42"
    await asyncio.sleep(gone_at + away_s - time.monotonic())
    await asyncio.to_thread(world.cluster.start_scheduler_again)
    await world.join()
    early = world.dask.map(time.sleep, [3 + away_s / 4] * 4, resources={"GPU": 1}, pure=False)  # for all GPUs
    for number, host in enumerate(world.cluster.hosts):
        await asyncio.sleep(number * (1 + away_s / 8))
        await asyncio.to_thread(world.cluster.start_machine_again, host.address)
    await world.has_room(cpus=1)
    await world.dask.cancel(early)
    await world.lives(*notebooks)
    done = await notebooks[0].run(
        "from distributed import Client\nassert Client().submit(int, '7').result() == 7"
    )
    assert done["status"] == "ok", done
    await (await world.open(cpus=0.5)).close()


@pytest.mark.long
async def test_all_at_once(start_world: Begin) -> None:
    """Kill Dask's scheduler, the service and the agents. One machine comes back at once, the other 15 s later."""
    world = await start_world(PAIR, SPLIT)
    notebooks = [await world.open(gpus=gpus) for gpus in (2, 1, 0.5)]
    for _ in range(2):
        await world.leave()
        world.cluster.kill_scheduler()
        kill(*daemon_pids(world.home, "scheduler"))
        for agent in world.agents():
            kill(agent.pid)
        await asyncio.to_thread(world.cluster.start_scheduler_again)
        await world.join()
        first, last = world.cluster.hosts
        await asyncio.to_thread(world.cluster.start_machine_again, first.address)
        for notebook in notebooks:
            assert await notebook.value("mine") == "42"
        await asyncio.sleep(15)
        await asyncio.to_thread(world.cluster.start_machine_again, last.address)
        await world.has_room(cpus=1)
        await world.lives(*notebooks)


@pytest.mark.parametrize("how", ["shutdown", pytest.param("kill -9", marks=pytest.mark.long)])
async def test_a_dask_that_does_not_come_back(start_world: Begin, how: str) -> None:
    world = await start_world(PAIR, grace_s=3)
    notebook = await world.open(gpus=1)
    await world.lives(notebook)
    gone_at = time.monotonic()
    if how == "shutdown":
        await world.dask.shutdown()
    else:
        await world.leave()
        world.cluster.kill_scheduler()
    assert "the Dask cluster did not come back within 3 s" in await world.ended(notebook, 15)
    assert time.monotonic() - gone_at > 3


@pytest.mark.parametrize("how", ["retired", pytest.param("lifetime", marks=pytest.mark.long)])
async def test_a_machine_that_is_taken_away(start_world: Begin, how: str) -> None:
    """The operator removes a machine: it gets no new kernel, and its kernels end with it."""
    options = ("--lifetime", "20 seconds") if how == "lifetime" else ()
    world = await start_world(Machine(cpus=2, resources={"mine": 4}, options=options), Machine(cpus=1))
    host = world.cluster.hosts[0]
    notebook = await world.open(resources={"mine": 1})
    await world.lives(notebook)
    data = world.dask.submit(Slow, workers=[host.address])  # Dask takes it elsewhere first
    assert await world.dask.submit(bool, data, workers=[host.address])  # it is there
    if how == "retired":
        retiring = asyncio.create_task(world.dask.retire_workers(names=[host.address]))
    why = await world.refusal(resources={"mine": 1}, within_s=22)
    assert "Dask is retiring its workers" in why
    assert await notebook.value("mine") == "42"
    assert "its node has left the Dask cluster" in await world.ended(notebook, 30)
    if how == "retired":
        await retiring
    assert await data == "7"


@pytest.mark.long
async def test_a_dask_that_leaves_when_it_is_idle(start_world: Begin) -> None:
    world = await start_world(Machine(cpus=2), DASK_DISTRIBUTED__SCHEDULER__IDLE_TIMEOUT="4s")
    notebook = await world.open(cpus=1)
    await asyncio.sleep(9)
    await world.lives(notebook)
    await notebook.close()
    address = world.cluster.address.partition("://")[2]
    await deadlines.until(lambda: not answers(address), "Dask's scheduler ends", END_TIMEOUT_S)


async def test_a_lease_without_an_agent_is_given_up_when_its_service_died(start_world: Begin) -> None:
    """A service died after Dask had granted a lease and before the agent noted it. Only that lease is given up."""
    world = await start_world(PAIR)
    notebook = await world.open(gpus=1)
    (host,) = world.cluster.hosts
    held = {"lease_id": "x", "kernel_id": "k", "user": "eve", "machine": host.address}
    held |= {"cpus": 0, "memory_bytes": 0, "gpus": 1, "resources": {}}
    taken = await world.dask.scheduler.roost_lease(held=held, device_ids=[], again=False, wait_s=1)
    assert len(taken["device_ids"]) == 1
    assert "0 free" in await world.refusal(gpus=1)
    await world.dask.run_on_scheduler(sweep)
    await world.lives(notebook)
    await world.has_room(gpus=1)
