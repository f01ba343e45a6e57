"""On a real GPU trace and one seed, `balanced` is ahead of published results. `benchmarks/placement.py` has more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.bench.trace_files import read_cluster, read_trace
from roost.bench.trace_run import draw_arrivals_to_demand, run_trace
from roost.placement import Snapshot, Workload, get_policy

_BESIDE = Path(__file__).resolve().parents[2]
FOLDERS = [
    Path(os.environ.get("ROOST_TRACES", "traces")),
    _BESIDE / "traces",
    _BESIDE.parent / "shared/traces",
]
NODES = "openb_node_list_gpu_node.csv"
PUBLISHED_FGD = {"default": (95.23, 95.39), "gpuspec33": (87.84, 94.55)}
"""Allocation in percent at 100 % and at 130 % demand, means of ten seeds (Weng et al., ATC '23)."""


@pytest.fixture(scope="module")
def trace_folder() -> Path:
    found = next((folder for folder in FOLDERS if (folder / NODES).is_file()), None)
    if found is None:
        pytest.skip("the GPU trace is not here: benchmarks/README.md says where to get it (ROOST_TRACES)")
    return found


@pytest.mark.parametrize("name", PUBLISHED_FGD)
def test_balanced_is_ahead_of_published_fgd(trace_folder: Path, name: str) -> None:
    snapshot = Snapshot.of(read_cluster(str(trace_folder / NODES)))
    requests = [task.request for task in read_trace(str(trace_folder / f"openb_pod_list_{name}.csv"))]
    workload, gpus = Workload.of(requests, snapshot), float(snapshot.columns.gpus.sum())
    at_100, at_130 = PUBLISHED_FGD[name]
    arrivals = draw_arrivals_to_demand(requests, gpus, 1.3, seed=42)
    ours = run_trace(get_policy("balanced", workload), snapshot, arrivals)
    fgd = run_trace(get_policy("fgd", workload), snapshot, arrivals)
    assert 100 * (ours.at_100 or 0) / gpus > at_100 + 0.4
    assert 100 * ours.placed / gpus > at_130 + 0.4
    assert abs(100 * fgd.placed / gpus - at_130) < 1


def test_balanced_refuses_little_when_requests_come_and_go(
    trace_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(_BESIDE / "benchmarks")
    from trace_data import draw_poisson_arrivals

    snapshot = Snapshot.of(read_cluster(str(trace_folder / NODES)))
    tasks = read_trace(str(trace_folder / "openb_pod_list_default.csv"))
    workload, gpus = (
        Workload.of([task.request for task in tasks], snapshot),
        float(snapshot.columns.gpus.sum()),
    )
    arrivals = draw_poisson_arrivals(tasks, gpus, 0.88, 3000, 42)
    balanced, random = (
        run_trace(get_policy(name, workload), snapshot, arrivals) for name in ("balanced", "random")
    )
    assert balanced.refused < 0.002 * balanced.arrived
    assert random.refused > 10 * balanced.refused
