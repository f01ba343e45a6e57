"""roost's Dask cluster for tests: machines are as declared, killed parts come back, and nothing stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from roost.bench.clusters.cluster_folder import processes, wait_until
from roost.bench.clusters.dask_machines import DaskMachines, Machine, why_not
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import VARIABLE

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install '.[dask]'")

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LONG_S = 20.0


@asynccontextmanager
async def client_of(cluster: DaskMachines) -> AsyncIterator[Any]:
    security = distributed.Security(**cluster.security)
    async with distributed.Client(cluster.address, asynchronous=True, security=security) as client:
        yield client


def workers(cluster: DaskMachines) -> dict[str, dict[str, Any]]:
    """Return Dask's own description of its workers, by name."""

    async def ask() -> dict[str, dict[str, Any]]:
        async with client_of(cluster) as client:
            said = (await client.scheduler.identity())["workers"]
        return {worker["name"]: {**worker, "address": address} for address, worker in said.items()}

    return asyncio.run(ask())


def variables(cluster: DaskMachines, name: str) -> dict[str, str | None]:
    """Return the environment variable `name` of each worker, by the worker's name."""

    async def ask() -> dict[str, str | None]:
        async with client_of(cluster) as client:
            said: dict[str, str | None] = await client.run(os.getenv, name)
        return said

    names = {worker["address"]: name for name, worker in workers(cluster).items()}
    return {names[address]: value for address, value in asyncio.run(ask()).items()}


def test_machines_are_as_declared_and_killed_parts_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://203.0.113.1:8786")
    machines = [
        Machine(cpus=3, gpus=2, memory_bytes=1 << 30, resources={"licence": 3}, environment={"SITE": "east"}),
        Machine(cpus=4, gpus=2, is_split=True),
        Machine(has_nanny=False),
    ]
    with DaskMachines(*machines, environment={VARIABLE: "/tmp/r-none"}) as cluster:
        one, split, bare = [host.address for host in cluster.hosts]
        before = workers(cluster)
        assert {name: worker["host"] for name, worker in before.items()} == {
            one: one,
            f"{split}-0": split,
            f"{split}-1": split,
            bare: bare,
        }
        assert before[one]["nthreads"] == 3
        assert before[one]["memory_limit"] == 1 << 30
        assert before[one]["resources"] == {"licence": 3, "GPU": 2}
        assert before[f"{split}-0"]["nthreads"] == 2
        assert before[f"{split}-0"]["memory_limit"] == 1 << 30
        assert before[f"{split}-1"]["resources"] == {"GPU": 1}
        assert before[bare]["nanny"] is None
        assert variables(cluster, "CUDA_VISIBLE_DEVICES") == {
            one: None,
            f"{split}-0": "0",
            f"{split}-1": "1",
            bare: None,
        }
        assert set(variables(cluster, VARIABLE).values()) == {"/tmp/r-none"}
        assert variables(cluster, "SITE")[one] == "east"

        assert cluster.kill_worker(one) not in cluster.worker_pids(one)
        wait_until(
            lambda: one in (there := workers(cluster)) and there[one]["address"] != before[one]["address"],
            "the nanny starts no other worker",
            timeout_s=allow_s(LONG_S),
        )
        assert workers(cluster)[one]["nanny"] == before[one]["nanny"]

        cluster.kill_nanny(split, 1)
        wait_until(
            lambda: f"{split}-1" not in workers(cluster), "the worker stays", timeout_s=allow_s(LONG_S)
        )
        assert f"{split}-0" in workers(cluster)
        cluster.kill_machine(split)
        cluster.start_machine_again(split)
        assert {f"{split}-0", f"{split}-1"} < set(workers(cluster))

        pids = cluster.worker_pids(one)
        assert cluster.stop_machine(one) == [0]
        assert one not in workers(cluster)
        assert not any(map(psutil.pid_exists, pids))
        assert cluster.add_machine(Machine()).address in workers(cluster)

        running = cluster.processes()
        assert running
        cluster.close()
        assert processes(cluster.folder) == []
        assert not cluster.folder.exists()
        assert not any(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running
        )


def test_a_killed_scheduler_ends_its_machines_and_comes_back_at_its_address() -> None:
    with DaskMachines(Machine(), Machine(cpus=2)) as cluster:
        address, hosts = cluster.address, [host.address for host in cluster.hosts]
        cluster.kill_scheduler()
        wait_until(
            lambda: cluster.processes() == [], "machines stay without a scheduler", timeout_s=allow_s(LONG_S)
        )
        cluster.start_scheduler_again()
        assert cluster.address == address
        assert workers(cluster) == {}
        for host in hosts:
            cluster.start_machine_again(host)
        assert set(workers(cluster)) == set(hosts)


def test_tls_refuses_clients_with_another_certificate_or_none() -> None:
    with DaskMachines(Machine(), is_encrypted=True) as cluster:
        assert len(workers(cluster)) == 1
        key = cluster.folder / "tls" / "key.pem"
        assert key.stat().st_mode & 0o777 == 0o600

        async def try_to_connect(address: str, security: Any) -> None:
            await distributed.core.connect(
                address, timeout=allow_s(30), **security.get_connection_args("client")
            )

        with pytest.raises(OSError, match="certificate"):
            asyncio.run(try_to_connect(cluster.address, distributed.Security.temporary()))
        with pytest.raises(OSError, match="closed"):
            asyncio.run(try_to_connect(cluster.address.replace("tls:", "tcp:"), distributed.Security()))
