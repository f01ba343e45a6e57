"""The pipeline: ties, avoided nodes, stale metrics, devices, and wrong filters and scorers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from roost.placement import (
    Decision,
    Device,
    Node,
    Pipeline,
    Placement,
    Policy,
    Refusal,
    Request,
    Snapshot,
    get_policy,
)


@dataclass(frozen=True)
class Fixed:
    """A scorer that gives every node the same value."""

    value: Any = 1.0
    name: str = "fixed"
    needs_metrics: bool = False

    def score(self, request: Request, snapshot: Snapshot) -> Any:
        return np.full(len(snapshot), self.value)


class OnlyB:
    name = "only_b"

    def passes(self, request: Request, snapshot: Snapshot) -> Any:
        return np.array([node_id == "b" for node_id in snapshot.nodes], dtype=bool)

    def reason(self, request: Request, node: Node) -> str:
        return "is not b"


def _nodes(**ages: float | None) -> Snapshot:
    return Snapshot.of(
        Node(id=name, cpus=4, memory_bytes=2**33, metrics_age_s=age) for name, age in ages.items()
    )


def _placed(decision: Decision) -> Placement:
    assert decision.placement is not None, decision.reason
    return decision.placement


def test_ties_go_to_the_smallest_id() -> None:
    decision = Pipeline(name="p", scorers=((Fixed(), 1.0),)).place(Request(), _nodes(c=1, a=1, b=1))
    assert [p.node_id for p in (_placed(decision), *decision.runners_up)] == ["a", "b", "c"]


def test_score_is_the_sum_of_weighted_terms() -> None:
    scorers = ((Fixed(0.25, "x"), 4.0), (Fixed(0.5, "y"), -1.0))
    placement = _placed(Pipeline(name="p", scorers=scorers).place(Request(), _nodes(a=1)))
    assert (placement.score, placement.terms) == (0.5, {"x": 1.0, "y": -0.5})
    assert {type(value) for value in (placement.score, *placement.terms.values())} == {float}
    assert type(placement.node_id) is str


def test_avoided_nodes_are_refused_for_now() -> None:
    decision = get_policy("balanced").place(
        Request(cpus=1), _nodes(a=1, b=1), avoid=dict.fromkeys(["a", "gone"], "too busy")
    )
    assert _placed(decision).node_id == "b"
    refusal = Refusal(node_id="a", filter="avoid", reason="too busy", when="now")
    assert tuple(decision.refusals) == (refusal,)
    both = get_policy("balanced").place(
        Request(cpus=1), _nodes(a=1, b=1), avoid={"a": "refused it", "b": "kept for another"}
    )
    assert both.reason == "no node has room now for 1 CPU: 1 of 2 nodes refused it, 1 kept for another"


def test_every_filter_that_refuses_a_node_is_reported() -> None:
    node = Node(id="a", cpus=1, is_draining=True)
    decision = get_policy("balanced").place(Request(cpus=2, gpus=1), Snapshot.of([node]))
    assert [(r.filter, r.when) for r in decision.refusals] == [
        ("draining", "now"),
        ("gpu", "never"),
        ("cpu", "never"),
    ]
    assert decision.is_never


def test_no_nodes_at_all() -> None:
    decision = get_policy("balanced").place(Request(gpus=1), Snapshot.of([]))
    assert (decision.placement, decision.reason) == (None, "there are no nodes")


def test_runners_up_are_limited() -> None:
    nodes = Snapshot.of(Node(id=f"{i:03}", kernels=i % 3) for i in range(300))
    runners_up = get_policy("round_robin").place(Request(), nodes).runners_up
    assert [placement.node_id for placement in runners_up] == [f"{3 * i:03}" for i in range(1, 10)]
    assert Pipeline(name="p", scorers=(), runners_up=0).place(Request(), nodes).runners_up == ()


@pytest.mark.parametrize("name", ["balanced"])
@pytest.mark.parametrize("request_", [Request(), Request(cpus=1), Request(memory_bytes=1), Request(gpus=0.5)])
def test_round_robin_ranks_without_fresh_metrics(name: str, request_: Request) -> None:
    devices = (Device(id="0"), Device(id="1"))
    sizes = [
        Node(id="a", cpus=8, memory_bytes=8, kernels=2, devices=devices),
        Node(id="b", cpus=8, memory_bytes=8, devices=devices),
    ]
    missing = get_policy(name).place(request_, Snapshot.of(sizes))
    assert missing.fallback == "ranked by round robin, since no node that fits has metrics"
    assert (missing.policy, missing.metrics_age_s) == (name, None)
    assert set(_placed(missing).terms) == {"kernels"}
    assert _placed(missing).node_id == "b"
    assert missing.reason.endswith(missing.fallback)
    stale = get_policy(name).place(request_, Snapshot.of(replace(node, metrics_age_s=31.4) for node in sizes))
    assert stale.fallback == (
        "ranked by round robin, since the newest metrics of nodes that fit are 31 s old (stale after 30 s)"
    )
    fresh = get_policy(name).place(request_, Snapshot.of(replace(node, metrics_age_s=30.0) for node in sizes))
    assert (fresh.fallback, fresh.metrics_age_s) == (None, 30.0)


@pytest.mark.parametrize("name", ["pack", "spread", "round_robin"])
def test_policies_that_use_promises_alone_never_fall_back(name: str) -> None:
    decision = get_policy(name).place(Request(cpus=1), _nodes(a=None))
    assert (decision.fallback, _placed(decision).node_id) == (None, "a")


def test_fresh_metrics_on_nodes_that_do_not_fit_do_not_count() -> None:
    nodes = [Node(id="full", cpus=1, cpus_promised=1, metrics_age_s=1.0), Node(id="free", cpus=1)]
    assert get_policy("balanced").place(Request(cpus=1), Snapshot.of(nodes)).fallback is not None


def test_a_node_without_metrics_ranks_between_idle_and_busy() -> None:
    idle = Node(id="c", cpus=4, memory_bytes=8, cpus_used=0, memory_used_bytes=0, metrics_age_s=1.0)
    busy = Node(id="a", cpus=4, memory_bytes=8, cpus_used=4, memory_used_bytes=8, metrics_age_s=1.0)
    for unknown in (Node(id="b", cpus=4, memory_bytes=8), replace(busy, id="b", metrics_age_s=99.0)):
        for request in (Request(), Request(cpus=1), Request(memory_bytes=1)):
            decision = get_policy("balanced").place(request, Snapshot.of([idle, busy, unknown]))
            ranking = [p.node_id for p in (_placed(decision), *decision.runners_up)]
            assert (ranking, decision.fallback) == (["c", "b", "a"], None)


def test_stale_use_does_not_choose_the_device() -> None:
    devices = (Device(id="0", used=0.9), Device(id="1", used=0.0))
    node = Node(id="a", devices=devices, metrics_age_s=1.0)
    request = Request(gpus=0.5)
    assert _placed(get_policy("balanced").place(request, Snapshot.of([node]))).device_ids == ("1",)
    stale = Snapshot.of([replace(node, metrics_age_s=99.0)])
    assert _placed(get_policy("balanced").place(request, stale)).device_ids == ("0",)


@dataclass(frozen=True)
class PerDevice:
    """A scorer that reads the score of each device from a table: node id → scores."""

    ratings: Any
    name = "device"
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> Any:
        width = snapshot.columns.device_free.shape[1]
        rows = [self.ratings[node_id] for node_id in snapshot.nodes]
        return np.array([[*row, *[np.nan] * (width - len(row))] for row in rows], dtype=float)


def _devices(*promised: float) -> tuple[Device, ...]:
    return tuple(Device(id=str(i), promised=share) for i, share in enumerate(promised))


def test_a_node_counts_as_its_best_devices_that_fit() -> None:
    nodes = Snapshot.of([Node(id="a", devices=_devices(0.0, 0.0, 0.9)), Node(id="b", devices=_devices(0, 0))])
    mine = Pipeline(name="mine", scorers=((PerDevice({"a": (1, 2, 9), "b": (0, 4)}), 0.5),))
    one = mine.place(Request(gpus=0.5), nodes)
    assert [(p.node_id, p.device_ids, p.score) for p in (_placed(one), *one.runners_up)] == [
        ("b", ("1",), 2.0),
        ("a", ("1",), 1.0),  # device 2 is rated 9 but full
    ]
    two = mine.place(Request(gpus=2), nodes)
    assert [(p.node_id, p.device_ids, p.score) for p in (_placed(two), *two.runners_up)] == [
        ("b", ("1", "0"), 1.0),  # the mean of 0 and 4, halved
        ("a", ("1", "0"), 0.75),
    ]
    assert _placed(two).terms == {"device": 1.0}


def test_equal_devices_go_by_the_fullest_then_the_first() -> None:
    node = Node(id="a", devices=_devices(0.0, 0.25, 0.5, 0.5, 0.9))
    mine = Pipeline(name="mine", scorers=())
    assert _placed(mine.place(Request(gpus=0.5), Snapshot.of([node]))).device_ids == ("2",)
    assert _placed(mine.place(Request(gpus=0.6), Snapshot.of([node]))).device_ids == ("1",)


@pytest.mark.parametrize(("better", "chosen"), [(0.1 + 0.2, "1"), (0.3 + 1e-9, "0")])
def test_devices_are_equal_if_their_scores_are_equal_to_9_decimals(better: float, chosen: str) -> None:
    assert better > 0.3
    node = Node(id="a", devices=_devices(0.0, 0.5))
    mine = Pipeline(name="mine", scorers=((PerDevice({"a": (better, 0.3)}), 1.0),))
    assert _placed(mine.place(Request(gpus=0.5), Snapshot.of([node]))).device_ids == (chosen,)


def test_scorers_of_devices_have_no_effect_without_gpus() -> None:
    mine = Pipeline(name="mine", scorers=((PerDevice({"a": (1,), "b": ()}), 1.0),))
    nodes = Snapshot.of([Node(id="a", cpus=1, devices=_devices(0.0)), Node(id="b", cpus=1)])
    placement = _placed(mine.place(Request(cpus=1), nodes))
    assert (placement.node_id, placement.score, placement.terms) == ("a", 0.0, {})


def test_own_filters_apply_in_the_fallback_too() -> None:
    mine = Pipeline(name="mine", filters=(OnlyB(),), scorers=((Fixed(needs_metrics=True), 1.0),))
    decision = mine.place(Request(), _nodes(a=None, b=None))
    assert decision.fallback is not None
    assert _placed(decision).node_id == "b"
    assert tuple(decision.refusals) == (
        Refusal(node_id="a", filter="only_b", reason="is not b", when="never"),
    )


class Gives:
    """A scorer that gives always the same."""

    name, needs_metrics = "gives", False

    def __init__(self, given: Any) -> None:
        self._given = given

    def score(self, request: Request, snapshot: Snapshot) -> Any:
        return self._given


def test_an_error_names_the_wrong_scorer() -> None:
    with pytest.raises(ValueError, match="scorer 'fixed' must give one finite number per node"):
        Pipeline(name="p", scorers=((Fixed(float("nan")), 1.0),)).place(Request(), _nodes(a=1))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([1.0], "a list"),
        ("1", "a text"),
        (1.0, "one float"),
        (np.float64(1), "one float64"),
        ({"a": 1}, "a dict"),
        (np.array(["1"]), "an array (1,) of text"),
        (np.array([None]), "an array (1,) of objects"),
        (np.ones(3), "an array (3,)"),
        (np.array([np.inf]), "NaN or an infinite number"),
    ],
)
def test_an_error_says_what_a_scorer_gave_and_must_give(given: object, named: str) -> None:
    policy = Pipeline(name="p", scorers=((Gives(given), 1.0),))
    with pytest.raises(ValueError, match=re.escape(f"of shape (1,) or (1, 0); it gave {named}. Fix it")):
        policy.place(Request(), _nodes(a=1))


def test_scores_of_truth_values_and_whole_numbers_add_up() -> None:
    kinds = np.array([True, False]), np.array([True, True]), np.array([3, 4], dtype=np.int16)
    policy = Pipeline(name="p", scorers=tuple((Gives(each), 1.0) for each in kinds))
    assert _placed(policy.place(Request(), _nodes(a=1, b=1))).score == 5.0


@pytest.mark.parametrize(
    ("given", "named"), [([True], "a list"), (True, "one bool"), (np.ones(1), "an array (1,) of numbers")]
)
def test_an_error_says_what_a_filter_gave_and_must_give(given: object, named: str) -> None:
    class Wrong(OnlyB):
        def passes(self, request: Request, snapshot: Snapshot) -> Any:
            return given

    with pytest.raises(ValueError, match=re.escape(f"of shape (1,); it gave {named}. Fix it")):
        Pipeline(name="p", scorers=(), filters=(Wrong(),)).place(Request(), _nodes(a=1))


def test_an_error_names_the_wrong_filter() -> None:
    class Short(OnlyB):
        def passes(self, request: Request, snapshot: Snapshot) -> Any:
            return np.ones(1, dtype=bool)

    with pytest.raises(ValueError, match="filter 'only_b' must give one truth value per node"):
        Pipeline(name="p", scorers=(), filters=(Short(),)).place(Request(), _nodes(a=1, b=1))


def test_a_pipeline_is_a_policy() -> None:
    assert isinstance(Pipeline(name="p", scorers=()), Policy)
