"""roost's Ray and Dask clusters for tests end with the process that started them. A failed start leaves nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from roost.bench.clusters import cluster_folder, dask_machines, raylets
from roost.bench.clusters.cluster_folder import DaemonCluster, claim_network, processes, wait_until
from roost.testing.deadlines import allow_s


@pytest.fixture(params=[raylets, dask_machines], ids=["ray", "dask"])
def cluster_module(request: pytest.FixtureRequest) -> ModuleType:
    if reason := request.param.why_not():
        pytest.skip(reason)
    chosen: ModuleType = request.param
    return chosen


def test_a_cluster_ends_with_the_process_that_started_it(cluster_module: ModuleType) -> None:
    name, within_s = {raylets: ("Raylets", 60.0), dask_machines: ("DaskMachines", 20.0)}[cluster_module]
    code = f"""
from {cluster_module.__name__} import Machine, {name}
with {name}(Machine()) as cluster:
    print(cluster.folder, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        folder = Path(program.stdout.readline().strip())
        assert processes(folder)
        program.kill()
        wait_until(lambda: not folder.exists(), "the folder stays", timeout_s=allow_s(within_s))
        assert processes(folder) == []


def test_a_failed_start_reports_why_and_leaves_nothing(cluster_module: ModuleType) -> None:
    cluster: DaemonCluster = {
        raylets: lambda: raylets.Raylets(raylets.Machine(labels={"zone": "plenty of it"})),
        dask_machines: lambda: dask_machines.DaskMachines(
            dask_machines.Machine(options=("--memory-limit", "plenty"))
        ),
    }[cluster_module]()
    with pytest.raises(RuntimeError, match="plenty"), cluster:
        pass
    assert cluster.processes() == []
    assert not cluster.folder.exists()


def test_two_clusters_never_have_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    first, claim = claim_network()
    draw, drawn = random.randint, [int(first.rpartition(".")[2])]  # once more, then any
    monkeypatch.setattr(
        cluster_folder.random, "randint", lambda *bounds: drawn.pop() if drawn else draw(*bounds)
    )
    with claim:
        second, other = claim_network()
        other.close()
    assert not drawn
    assert first != second
