"""A Dask cluster that shrinks: adaptive scaling spares a kernel's machine, and a kernel ends with its machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import settle, wait_gone
from roost.scheduler.client.client import connect, disconnect
from roost.testing.clusters.cluster_folder import claim_network
from roost.testing.clusters.dask_machines import why_not
from roost.testing.deadlines import allow_s, until
from roost.testing.leftovers import VARIABLE, end

CLUSTER = """
import asyncio, json, sys
from distributed import Adaptive, Nanny, Scheduler, SpecCluster

class Machines(SpecCluster):
    "As LocalCluster, scheduler and nannies in one process; but each worker is on a machine of its own"
    def new_worker_spec(self):
        ((name, spec),) = super().new_worker_spec().items()
        return {name: {**spec, "options": {**spec["options"], "host": f"{sys.argv[1]}.{3 + name}"}}}

class Counted(Adaptive):
    "Counts its decisions"
    decisions = 0
    async def adapt(self):
        await super().adapt()
        Counted.decisions += 1

async def main():
    scheduler = dict(host=f"{sys.argv[1]}.2", dashboard=False, dashboard_address=":0")
    worker = {"cls": Nanny, "options": dict(nthreads=2, memory_limit="1GiB", dashboard=False)}
    scheduler = {"cls": Scheduler, "options": scheduler}
    async with Machines(scheduler=scheduler, worker=worker, asynchronous=True) as cluster:
        loop = asyncio.get_running_loop()
        print(cluster.scheduler_address, flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
            if line[0] == "scale":
                cluster.scale(int(line[1]))
                await cluster
            elif line[0] == "adapt":
                cluster.adapt(Adaptive=Counted, minimum=0, maximum=3, interval="200ms", wait_count=2)
            elif line[0] == "decide":
                last = Counted.decisions + int(line[1])
                while Counted.decisions < last:
                    await asyncio.sleep(0.05)
            print(json.dumps([worker.host for worker in cluster.scheduler.workers.values()]), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


class Cluster:
    """The program that runs the cluster. It answers each command, a line, with the machines that have workers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._read()

    def tell(self, line: str) -> list[str]:
        """Send a command, and return the machines that have workers after the command."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        machines: list[str] = json.loads(self._read())
        return machines

    async def until(self, machines: list[str], within_s: float) -> None:
        """Wait until exactly these machines have workers."""
        there: list[str] = []

        def is_so() -> bool:
            nonlocal there
            there = self.tell("look")
            return there == machines

        await until(is_so, lambda: f"{machines} have workers: {there}", within_s, 0.1)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def scaling_cluster(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Start a cluster of three machines with two threads each."""
    if reason := why_not():
        pytest.skip(reason)
    (tmp_path / "cluster.py").write_text(CLUSTER)
    network, claim = claim_network()
    with (
        claim,
        subprocess.Popen(
            [sys.executable, str(tmp_path / "cluster.py"), network],
            env={**os.environ, VARIABLE: f"{runtime_dir}/node"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=tmp_path,
        ) as process,
    ):
        try:
            started = Cluster(process)
            monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", started.address)
            assert len(started.tell("scale 3")) == 3
            yield started
            disconnect()
            settle(runtime_dir)
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(allow_s(10))
            except subprocess.TimeoutExpired:
                process.kill()
            end(f"{runtime_dir}/node")  # agents too


@pytest.fixture
async def open_notebook(scaling_cluster: Cluster, tmp_path: Path) -> AsyncIterator[Callable[[], Any]]:
    """Return a function that opens a notebook. At the end no kernel is left."""
    opened: list[Notebook] = []

    async def one() -> Notebook:
        notebook = Notebook("roosted")
        notebook.manager.kernel_spec_manager = kernelspecs(tmp_path, config={"backend": "dask", "cpus": 1})
        await notebook.open()
        opened.append(notebook)
        await notebook.run("mine = 42")
        return notebook

    yield one
    for notebook in opened:
        await notebook.close()
    assert await connect("dask").kernels() == []


async def test_adaptive_scaling_spares_a_machine_until_its_kernel_has_ended(
    scaling_cluster: Cluster, open_notebook: Callable[[], Any]
) -> None:
    notebook = await open_notebook()
    kernel = await connect("dask").kernel(notebook.manager.kernel_id)
    scaling_cluster.tell("adapt")
    await scaling_cluster.until([kernel.node_id], 60)
    assert scaling_cluster.tell("decide 5") == [kernel.node_id]  # Dask retires a worker after two decisions
    assert await notebook.value("mine") == "42"
    await notebook.close()
    await scaling_cluster.until([], 60)


@pytest.mark.long
async def test_a_cluster_that_is_scaled_down_by_hand(
    scaling_cluster: Cluster, open_notebook: Callable[[], Any]
) -> None:
    notebook = await open_notebook()
    pid = notebook.pid
    scaling_cluster.tell("scale 0")
    await asyncio.wait_for(notebook.manager.provisioner.wait(), allow_s(60))
    assert wait_gone(pid, 60)
    reason = (await connect("dask").kernel(notebook.manager.kernel_id)).reason
    assert "its node has left the Dask cluster" in reason
    assert await connect("dask").nodes() == []
    scaling_cluster.tell("scale 1")
    assert await (await open_notebook()).value("mine") == "42"
