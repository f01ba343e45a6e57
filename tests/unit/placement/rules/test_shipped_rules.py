"""Policies that learn from recent requests, published policies for comparison, and preferences, on small clusters."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from roost.placement import Device, Node, Pipeline, Placement, Request, Snapshot, Workload, get_policy
from roost.placement.shipped_policies import RandomTies

GIB = 2**30
HALF, WHOLE = Request(cpus=2, gpus=0.5), Request(cpus=8, gpus=1)
WORKLOAD = Workload.of(
    [HALF] * 12 + [WHOLE] * 8 + [Request(cpus=8, gpus=1, gpu_models=("A100",))] * 10, {"A100": 4, "T4": 12}
)


def _node(
    name: str, *promised: float, model: str = "T4", used: float | None = None, **values: object
) -> Node:
    devices = tuple(
        Device(id=str(i), model=model, promised=share, used=share if used is None else used)
        for i, share in enumerate(promised)
    )
    plain = {
        "cpus": 32,
        "memory_bytes": 64 * GIB,
        "cpus_used": 0,
        "memory_used_bytes": 0,
        "metrics_age_s": 1.0,
    }
    return Node(id=name, devices=devices, **{**plain, **values})  # type: ignore[arg-type]


def _placed(
    name: str, request: Request, *nodes: Node, workload: Workload = WORKLOAD, version: int = 1
) -> Placement:
    decision = get_policy(name, workload).place(request, Snapshot.of(nodes, version=version))
    assert decision.placement is not None, decision.reason
    assert decision.fallback is None
    return decision.placement


class TestBalancedWithAWorkload:
    def test_half_a_gpu_fills_a_half_that_is_free(self) -> None:
        nodes = _node("a", 0, 0), _node("b", 0, 0.5)
        placement = _placed("balanced", HALF, *nodes)
        assert (placement.node_id, placement.device_ids) == ("b", ("1",))
        assert _placed("balanced", HALF, *nodes, workload=Workload()).node_id == "a"

    def test_nineteen_requests_are_too_few_to_learn_from(self) -> None:
        few, nodes = Workload.of([HALF] * 19, {"T4": 4}), (_node("a", 0, 0), _node("b", 0, 0.5))
        assert _placed("balanced", HALF, *nodes, workload=few).node_id == "a"

    def test_models_that_other_requests_require_stay_free(self) -> None:
        nodes = _node("a", 0, model="A100"), _node("b", 0, model="T4")
        assert _placed("balanced", WHOLE, *nodes).node_id == "b"
        assert _placed("balanced", replace(WHOLE, gpu_models=("A100",)), *nodes).node_id == "a"

    def test_a_gpu_is_not_left_without_cpus(self) -> None:
        # 24 CPUs with one GPU: on "a" the other GPU would keep only 8 CPUs, on "b" no GPU is left
        greedy = Request(cpus=24, gpus=1)
        assert (
            _placed("balanced", greedy, _node("a", 0, 0, cpus=26), _node("b", 0, 1, cpus=26)).node_id == "b"
        )

    def test_busy_devices_are_avoided_too(self) -> None:
        assert _placed("balanced", HALF, _node("a", 0, 0.5, used=0.9), _node("b", 0, 0)).node_id == "b"

    @pytest.mark.parametrize("workload", [Workload(), WORKLOAD], ids=["plain", "workload"])
    def test_kernels_without_gpus_go_by_load_off_gpu_nodes(self, workload: Workload) -> None:
        nodes = _node("a", 0), _node("b", cpus_used=20, memory_used_bytes=GIB), _node("c", cpus_used=10)
        assert _placed("balanced", Request(), *nodes, workload=workload).node_id == "c"
        assert _placed("balanced", Request(cpus=2), *nodes, workload=workload).node_id == "c"
        assert _placed("balanced", Request(cpus=2), nodes[0], workload=workload).node_id == "a"


class TestPreferences:
    @pytest.mark.parametrize("request_", [Request(), Request(cpus=1), HALF])
    @pytest.mark.parametrize("workload", [Workload(), WORKLOAD], ids=["plain", "workload"])
    def test_near_outweighs_load(self, workload: Workload, request_: Request) -> None:
        gpu = () if not request_.gpus else (0.0,)
        idle, near = _node("a", *gpu), _node("b", *gpu, cpus_used=24, labels={"rack": "3"})
        asked = replace(request_, near={"rack": "3"})
        assert _placed("balanced", asked, idle, near, workload=workload).node_id == "b"
        assert (
            _placed("balanced", replace(asked, near={"rack": "4"}), idle, near, workload=workload).node_id
            == "a"
        )

    def test_near_is_only_a_preference(self) -> None:
        full = _node("b", cpus_promised=32, labels={"rack": "3"})
        assert _placed("balanced", Request(cpus=1, near={"rack": "3"}), _node("a"), full).node_id == "a"

    def test_a_warm_node_decides_only_close_calls(self) -> None:
        asked, idle = Request(environment="/opt/py"), _node("a")
        assert _placed("balanced", asked, idle, _node("b", warm=("/opt/py",))).node_id == "b"
        assert _placed("balanced", asked, idle, _node("b", cpus_used=16, warm=("/opt/py",))).node_id == "a"
        assert _placed("balanced", asked, idle, _node("b", warm=("/opt/r",))).node_id == "a"


class TestFgd:
    def test_takes_the_node_that_lowers_fragmentation(self) -> None:
        nodes = _node("a", 0, 0), _node("b", 0, 0.5)
        placement = _placed("fgd", HALF, *nodes)
        assert (placement.node_id, placement.device_ids) == ("b", ("1",))

    def test_ties_go_to_the_smallest_id(self) -> None:
        assert _placed("fgd", WHOLE, *(_node(name, 0, 0) for name in "cab")).node_id == "a"
        assert _placed("fgd", WHOLE, _node("a", 0), _node("b", 0, 0), workload=Workload()).node_id == "a"

    def test_scores_are_whole_hundredths_as_published(self) -> None:
        decision = get_policy("fgd", WORKLOAD).place(
            HALF, Snapshot.of([_node("a", 0, 0), _node("b", 0.5), _node("c", 0.2)])
        )
        assert decision.placement is not None
        for placement in (decision.placement, *decision.runners_up):
            assert placement.score * 100 == pytest.approx(round(placement.score * 100), abs=1e-6)


class TestBestFit:
    def test_takes_the_node_with_least_left(self) -> None:
        nodes = _node("a", 0, 0, cpus=64), _node("b", 0, 0, cpus=16), _node("c", 0, 0, 0, cpus=32)
        assert _placed("best_fit", WHOLE, *nodes).node_id == "b"

    def test_and_the_fullest_device_on_it(self) -> None:
        assert _placed("best_fit", Request(gpus=0.25), _node("a", 0, 0.6, 0.5, 0.9)).device_ids == ("1",)

    def test_cpus_and_gpus_weigh_equally(self) -> None:
        # "a" has 16 of 128 CPUs left, "b" 8 of 128 CPUs and 1 of 8 GPUs: 0.125 and 0.1875
        nodes = _node("a", 0, cpus=24), _node("b", 0, 0, cpus=16)
        assert _placed("best_fit", WHOLE, *nodes).node_id == "a"
        assert _placed("best_fit", WHOLE, replace(nodes[0], cpus=40), nodes[1]).node_id == "b"


class TestRandom:
    NODES = (_node("a"), _node("b", cpus=1), _node("c"), _node("d"))

    def test_the_same_for_a_version_and_a_seed(self) -> None:
        for version in range(1, 20):
            placed = {
                _placed("random", Request(cpus=2), *self.NODES, version=version).node_id for _ in range(3)
            }
            assert len(placed) == 1

    def test_every_node_that_fits_is_equally_likely(self) -> None:
        request = Request(cpus=2)
        seen = Counter(_placed("random", request, *self.NODES, version=v).node_id for v in range(1, 301))
        assert set(seen) == {"a", "c", "d"}
        assert min(seen.values()) > 70

    def test_another_seed_gives_another_choice(self) -> None:
        snapshots = [Snapshot.of(self.NODES, version=version) for version in range(1, 40)]
        chosen = []
        for seed in (0, 1):
            mine = Pipeline(name="mine", scorers=(), ties=RandomTies(seed=seed))
            placements = [mine.place(Request(), snapshot).placement for snapshot in snapshots]
            chosen.append([placement.node_id for placement in placements if placement is not None])
        assert len(chosen[0]) == len(chosen[1]) == 39
        assert chosen[0] != chosen[1]
