"""roost's plugins in Dask's own scheduler and workers, in this process.

The plugins use parts of Dask that are not public. A test fails here if a version of Dask has changed such a part.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from roost.testing import deadlines
from roost.testing.deadlines import allow_s

dask = pytest.importorskip("dask", reason="Dask is not installed: pip install '.[dask]'")
distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install '.[dask]'")

from roost.scheduler.backends.dask.plugin import (  # noqa: E402 - they import distributed
    nanny_plugin,
    scheduler_plugin,
    worker_plugin,
)

# Dask warns if a busy machine takes a second for it.
pytestmark = pytest.mark.filterwarnings("ignore:Creating scratch directories:UserWarning")

DEADLINE_S = 60.0
MANY = {"GPU": 2, "licence": 1}

gates: dict[str, threading.Event] = {}


def hold(name: str) -> str:
    """Run as a Dask task until the gate `name` is opened, and return the worker's address."""
    gates.setdefault(name, threading.Event()).wait(allow_s(DEADLINE_S))
    return str(distributed.get_worker().address)


class NoAgents:
    """A stand-in for `AgentStarter` that starts no agent."""

    async def start(self, server: Any) -> None:
        pass

    async def end(self, server: Any) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A scheduler and workers with roost's plugins, all on this event loop. Each worker has a machine of its own."""

    scheduler: Any
    workers: list[Any]
    client: Any

    @property
    def plugin(self) -> scheduler_plugin.RoostSchedulerPlugin:
        return self.scheduler.plugins[scheduler_plugin.NAME]

    async def lease(
        self,
        lease_id: str = "a",
        worker: int = 0,
        on: tuple[str, ...] = (),
        again: bool = False,
        **changes: Any,
    ) -> dict[str, Any]:
        """Ask for a lease on a worker, perhaps on the devices `on`, and return the plugin's answer."""
        held = {
            "lease_id": lease_id,
            "kernel_id": "k",
            "user": "ada",
            "machine": self.scheduler.workers[self.workers[worker].address].host,
            "cpus": 0,
            "memory_bytes": 0,
            "gpus": 0,
            "resources": {},
        }
        answer = await self.client.scheduler.roost_lease(
            held={**held, **changes}, device_ids=list(on), again=again, wait_s=0.2
        )
        return {name: list(value) if name == "device_ids" else value for name, value in answer.items()}

    async def release(self, lease_id: str = "a") -> None:
        await self.client.scheduler.roost_release(lease_id=lease_id)

    def submit(self, name: str, **resources: float) -> Any:
        return self.client.submit(hold, name, key=name, resources=resources)

    def left(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the first worker's free resources, and its resources for tasks in Dask's scheduler."""
        address = self.workers[0].address
        known = dict(self.scheduler.workers[address].resources)
        assert known == {name: of[address] for name, of in self.scheduler.resources.items() if address in of}
        return dict(self.workers[0].state.available_resources), known


@asynccontextmanager
async def started(*resources: dict[str, float], **options: Any) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(
            distributed.Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", **options)
        )
        workers = [
            await stack.enter_async_context(worker(scheduler, f"127.0.0.{3 + number}", amounts))
            for number, amounts in enumerate(resources)
        ]
        client = await stack.enter_async_context(
            distributed.Client(scheduler.address, asynchronous=True, set_as_default=False)
        )
        cluster = Cluster(scheduler=scheduler, workers=workers, client=client)
        await install(cluster)
        stack.callback(lambda: [gate.set() for gate in gates.values()])
        yield cluster


def worker(scheduler: Any, host: str, resources: dict[str, float]) -> Any:
    return distributed.Worker(scheduler.address, host=host, nthreads=4, resources=resources, dashboard=False)


async def install(cluster: Cluster, **attributes: Any) -> None:
    on_worker = worker_plugin.RoostWorkerPlugin(NoAgents())  # type: ignore[arg-type]
    for plugin in (scheduler_plugin.RoostSchedulerPlugin("1.0", ""), on_worker):
        plugin.__dict__.update(attributes)
        await cluster.client.register_plugin(plugin, name=scheduler_plugin.NAME)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path) -> Iterator[None]:
    gates.clear()
    with dask.config.set({"temporary-directory": str(tmp_path), "distributed.worker.memory.limit": 0}):
        yield


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, because Dask publishes no event for it."""
    await deadlines.until(condition, "Dask reaches its next state", DEADLINE_S, 0.01)


async def test_a_lease_reduces_the_resources_of_tasks_until_it_is_released() -> None:
    async with started(MANY) as cluster:
        assert await cluster.lease(gpus=0.5, resources={"licence": 1}) == {"device_ids": ["0"]}
        assert cluster.left() == ({"GPU": 1.5, "licence": 0}, {"GPU": 1.5, "licence": 0})
        assert cluster.workers[0].state.total_resources == MANY
        assert "refused" in await cluster.lease("b", resources={"licence": 0.1})
        (told,) = await cluster.client.scheduler.roost_leases()
        assert (told["lease_id"], *told["device_ids"], told["machine"]) == ("a", "0", "127.0.0.3")
        await cluster.release()
        assert cluster.left() == (MANY, MANY)


async def test_a_task_waits_for_a_kernels_resources_and_runs_when_they_are_free() -> None:
    """Tests Dask's `bulk_schedule_unrunnable_after_adding_worker`: it schedules a task for which no worker had room."""
    async with started(MANY) as cluster:
        await cluster.lease(resources={"licence": 1})
        task = cluster.submit("x", licence=1)
        await until(
            lambda: "x" in cluster.scheduler.tasks and cluster.scheduler.tasks["x"].state == "no-worker"
        )
        gates["x"] = threading.Event()
        gates["x"].set()
        await cluster.release()
        assert await asyncio.wait_for(task, allow_s(DEADLINE_S)) == cluster.workers[0].address


async def test_a_task_in_the_workers_own_queue_starts_when_a_lease_is_released() -> None:
    """Tests Dask's `UnpauseEvent`: a worker looks at its waiting tasks, although no task ends here."""
    async with started(MANY) as cluster:
        running = cluster.submit("running", GPU=1)
        await until(lambda: "running" in gates)
        await cluster.lease(gpus=1)
        queued = cluster.submit("queued", GPU=1)
        await until(lambda: len(cluster.workers[0].state.constrained) == 1)
        await cluster.release()
        await until(lambda: "queued" in gates)
        assert not running.done()
        for gate in gates.values():
            gate.set()
        await asyncio.wait_for(asyncio.gather(running, queued), allow_s(DEADLINE_S))
        assert cluster.left() == (MANY, MANY)


async def test_a_kernel_is_ahead_of_tasks_and_these_run_on_a_worker_with_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests Dask's `CancelComputeEvent` and `reschedule`: the worker returns a task that has to wait for a kernel."""
    monkeypatch.setattr(scheduler_plugin, "_WISH_S", allow_s(DEADLINE_S))
    async with started(MANY, {}) as cluster:
        running = cluster.submit("running", licence=1)
        await until(lambda: "running" in gates)
        queued = cluster.submit("queued", licence=1)
        await until(lambda: len(cluster.workers[0].state.constrained) == 1)
        assert (
            "tasks of the Dask cluster have it" in (await cluster.lease(resources={"licence": 1}))["refused"]
        )
        await until(lambda: not cluster.workers[0].state.constrained)
        await until(lambda: cluster.scheduler.tasks["queued"].state == "no-worker")
        async with worker(cluster.scheduler, "127.0.0.9", {"licence": 1}) as late:
            await until(lambda: "queued" in gates)
            gates["queued"].set()
            assert await asyncio.wait_for(queued, allow_s(DEADLINE_S)) == late.address
            gates["running"].set()
            await asyncio.wait_for(running, allow_s(DEADLINE_S))
            assert await cluster.lease(resources={"licence": 1}) == {"device_ids": []}
            assert cluster.left()[0]["licence"] == 0


async def test_a_wish_is_dropped_when_the_lease_is_claimed_on_another_machine() -> None:
    async with started(MANY, MANY) as cluster:
        running = cluster.client.submit(
            hold, "running", resources={"licence": 1}, workers=[cluster.workers[0].address]
        )
        await until(lambda: "running" in gates)
        assert "refused" in await cluster.lease(gpus=2, resources={"licence": 1})
        assert cluster.left()[0]["GPU"] == 0
        assert "refused" not in await cluster.lease(gpus=2, resources={"licence": 1}, worker=1)
        await until(lambda: cluster.left() == ({"GPU": 2, "licence": 0}, MANY))
        gates["running"].set()
        await asyncio.wait_for(running, allow_s(DEADLINE_S))


async def test_a_task_that_was_sent_before_a_lease_and_arrives_after_it_is_returned() -> None:
    async with started(MANY) as cluster:
        await cluster.lease(resources={"licence": 1})
        # As if Dask's scheduler had not known yet.
        cluster.scheduler.workers[cluster.workers[0].address].resources["licence"] = 1
        cluster.scheduler.resources["licence"][cluster.workers[0].address] = 1
        task = cluster.submit("x", licence=1)
        await until(lambda: "x" in cluster.workers[0].state.tasks)
        await cluster.lease("b", gpus=1)  # the scheduler sends the right amounts
        await until(lambda: cluster.scheduler.tasks["x"].state == "no-worker")
        await cluster.release()
        await until(lambda: "x" in gates)
        gates["x"].set()
        await asyncio.wait_for(task, allow_s(DEADLINE_S))


async def test_a_cluster_with_kernels_is_not_idle() -> None:
    """Tests `idle_timeout` and `idle_since`: a lease turns Dask's shutdown of an idle cluster off."""
    async with started(MANY, idle_timeout="1 hour") as cluster:
        assert cluster.scheduler.idle_timeout == 3600
        await cluster.lease(cpus=1)
        assert cluster.scheduler.idle_timeout is None
        await cluster.release()
        assert cluster.scheduler.idle_timeout == 3600
        assert cluster.scheduler.idle_since is None


async def test_adaptive_scaling_spares_machines_with_kernels() -> None:
    """Tests `valid_workers_downscaling`: Dask closes no worker on a machine with a kernel."""
    async with started(MANY, MANY) as cluster:
        assert len(cluster.scheduler.workers_to_close(n=2)) == 2
        await cluster.lease(cpus=1, worker=1)
        assert cluster.scheduler.workers_to_close(n=2) == [cluster.workers[0].address]


async def test_a_worker_that_is_retired_drains() -> None:
    """Tests the event `worker-status-change`: the ledger marks the slot of a retired worker as leaving."""
    async with started(MANY, MANY) as cluster:
        leaving = cluster.workers[0].address
        await cluster.client.retire_workers([leaving], close_workers=False, remove=False)
        await until(lambda: any(slot.is_leaving for slot in cluster.plugin.ledger.slots.values()))
        (slot,) = [slot for slot in cluster.plugin.ledger.slots.values() if slot.is_leaving]
        assert slot.worker == leaving


async def test_workers_report_their_free_resources() -> None:
    async with started(MANY) as cluster:
        task = cluster.submit("x", GPU=1)
        await until(lambda: cluster.plugin.ledger.slots[cluster.workers[0].address].free["GPU"] == 1)
        await until(lambda: "x" in gates)
        gates["x"].set()
        await asyncio.wait_for(task, allow_s(DEADLINE_S))
        await until(lambda: cluster.plugin.ledger.slots[cluster.workers[0].address].free["GPU"] == 2)
        answer = await cluster.client.scheduler.roost_nodes(since=-1, incarnation="", wait_s=0.0)
        assert answer["machines"]["127.0.0.3"]["resources"] == MANY
        assert (await cluster.client.scheduler.roost_metrics())["127.0.0.3"].keys() == {
            "cpus",
            "memory_bytes",
        }


async def test_the_plugins_of_another_version_keep_the_leases() -> None:
    async with started(MANY) as cluster:
        await cluster.lease(gpus=1, resources={"licence": 1})
        before = cluster.plugin
        with pytest.warns(UserWarning, match="overwriting"):
            await install(cluster, idempotent=False)
        assert cluster.plugin is not before
        assert set(cluster.plugin.ledger.leases) == {"a"}
        assert cluster.left() == ({"GPU": 1, "licence": 0}, {"GPU": 1, "licence": 0})
        await cluster.release()
        assert cluster.left() == (MANY, MANY)


async def test_a_worker_that_is_started_again_holds_leases_back_before_its_first_task() -> None:
    async with started() as cluster:
        async with worker(cluster.scheduler, "127.0.0.3", MANY) as first:
            cluster.workers.append(first)
            assert await cluster.lease(gpus=1) == {"device_ids": ["0"]}
        async with worker(cluster.scheduler, "127.0.0.3", MANY) as second:
            cluster.workers[0] = second
            assert cluster.left() == ({"GPU": 1, "licence": 1}, {"GPU": 1, "licence": 1})
        await cluster.release()


async def test_a_live_kernel_claims_again_resources_of_tasks_and_of_missing_workers() -> None:
    async with started({"GPU": 1}) as cluster:
        running = cluster.submit("running", GPU=1)
        await until(lambda: "running" in gates)
        answer = await cluster.lease(cpus=9, gpus=2, on=("0", "1"), again=True, resources={"licence": 1})
        assert answer == {"device_ids": ["0", "1"]}
        assert cluster.left() == ({"GPU": -1}, {"GPU": 0})
        assert (
            "another kernel has GPU 1"
            in (await cluster.lease("b", gpus=0.5, on=("1",), again=True))["refused"]
        )
        gates["running"].set()
        await asyncio.wait_for(running, allow_s(DEADLINE_S))
        await until(lambda: cluster.left() == ({"GPU": 0}, {"GPU": 0}))
        async with worker(cluster.scheduler, "127.0.0.3", MANY) as late:
            assert dict(late.state.available_resources) == {"GPU": 1, "licence": 0}
            await cluster.release()
            assert dict(late.state.available_resources) == MANY
        assert cluster.left() == ({"GPU": 1}, {"GPU": 1})


async def test_the_parts_that_only_nannies_use_exist() -> None:
    """Tests that nannies have `plugin_add` and the scheduler has `nanny_plugins`. More checks would need processes."""
    async with started() as cluster:
        assert cluster.scheduler.nanny_plugins == {}
    assert callable(distributed.Nanny.plugin_add)


@pytest.mark.parametrize(
    ("begun", "changed", "expected"),
    [
        ({}, {}, {}),
        ({"OMP_NUM_THREADS": "1"}, {}, {"OMP_NUM_THREADS": "1"}),
        (
            {"MKL_NUM_THREADS": "4", "PYTHONHASHSEED": "0"},
            {},
            {"MKL_NUM_THREADS": "4", "PYTHONHASHSEED": "0"},
        ),
        ({"PYTHONHASHSEED": "7"}, {}, {"PYTHONHASHSEED": "7"}),
        ({}, {"__DASK_PARENT_PID": "7"}, {}),
    ],
)
async def test_what_a_nanny_sets_for_its_workers_is_no_variable_of_a_kernel(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    begun: dict[str, str],
    changed: dict[str, str],
    expected: dict[str, str],
) -> None:
    (tmp_path / "environ").write_text("\0".join(f"{name}={value}" for name, value in begun.items()))
    names = (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MALLOC_TRIM_THRESHOLD_",
        "PYTHONHASHSEED",
    )
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**begun, **changed}.items():
        monkeypatch.setenv(name, value)
    async with started() as cluster:
        with dask.config.set({"distributed.nanny.pre-spawn-environ.MINE": "x"}):
            nanny = distributed.Nanny(cluster.scheduler.address)
        for name, value in nanny.pre_spawn_env.items():  # as it does before it starts its worker
            monkeypatch.setenv(name, value)
        await nanny.close()
    found = nanny_plugin.build_variables(nanny.pre_spawn_env, tmp_path / "environ")
    set_by_dask = {*names, "MINE", "__DASK_PARENT_PID"}
    assert {name: value for name, value in found.items() if name in set_by_dask} == expected


async def test_each_agent_accepts_all_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that Dask's plugin starts by itself accepts all earlier services. A later one is admitted at once."""
    calls: list[list[str]] = []
    reported = {"endpoint": "tcp://10.0.0.1:1", "public": "server"}

    async def bring_up(clients: list[str]) -> dict[str, Any]:
        calls.append(list(clients))
        return {**reported, "clients": list(clients)}

    async with started(MANY) as cluster:
        plugin, machine = cluster.plugin, "127.0.0.3"
        cluster.workers[0].handlers["roost_bring_up"] = bring_up
        service = cluster.client.scheduler
        await service.roost_admit(client="one")
        assert list(await service.roost_clients()) == ["one"]
        await plugin.on_agent_up(machine, "nanny", {**reported, "clients": ["one"]})
        report = plugin.agents[machine]["report"]
        await service.roost_admit(client="one")
        assert calls == []
        await service.roost_admit(client="two")
        await until(lambda: list(plugin.agents[machine]["clients"]) == ["one", "two"])
        assert plugin.agents[machine]["report"] == report, "it is the same agent for the first service"
        await plugin.on_agent_up(machine, "nanny", {**reported, "clients": []})
        await until(lambda: list(plugin.agents[machine]["clients"]) == ["one", "two"])
        assert calls == [["one", "two"]] * 2
        assert plugin.agents[machine]["report"] != report
        await plugin.on_agent_up(machine, "nanny", {"problem": "no room"})
        await service.roost_admit(client="three")
        assert (len(calls), plugin.agents[machine]["problem"]) == (2, "no room")
        monkeypatch.setattr(scheduler_plugin, "_TRY_AGAIN_S", 0.05)
        await plugin.on_agent_up(machine, "nanny", {"problem": "still no room"})
        await until(lambda: "endpoint" in plugin.agents[machine])
        assert calls[2:] == [["one", "two", "three"]], "it is tried again"
        await install(cluster)
        assert cluster.plugin.clients == ["one", "two", "three"], "the next plugin knows them"


async def test_the_agent_gets_the_settings_of_the_latest_plugin_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of the plugin before may be slow, and end after the first call of the latest one."""
    begun, may_end = threading.Event(), threading.Event()
    graces: list[float] = []

    def bring_up(_archive: bytes, _digest: str, _name: str, _settings: str, manager: Any, *_: Any) -> Any:
        if manager["grace_s"] == 300.0 and not begun.is_set():
            begun.set()
            assert may_end.wait(allow_s(DEADLINE_S))
        graces.append(manager["grace_s"])
        return {"endpoint": "tcp://10.0.0.1:1", "public": "server"}

    monkeypatch.setattr(nanny_plugin, "bring_up", bring_up)
    earlier, latest = (
        nanny_plugin.AgentStarter(archive=b"", digest="", settings={}, grace_s=grace_s, python="")
        for grace_s in (300.0, 77.0)
    )
    async with started(MANY) as cluster:
        server = cluster.workers[0]
        slow = asyncio.create_task(earlier.start(server))
        await until(begun.is_set)
        await latest.start(server)
        may_end.set()
        await slow
        assert graces[-1] == 77.0
