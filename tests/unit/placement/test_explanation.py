"""Explanations: the runner-up is the next choice, and refusals are counted by their main reason."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from roost.placement import Device, Node, Pipeline, Request, Snapshot, Workload, get_policy
from roost.placement.model.json_codec import encode
from roost.placement.rules.refusals import group_refusals

GIB = 2**30
WORKLOAD = Workload.of(
    [Request(cpus=2, gpus=0.5)] * 12 + [Request(cpus=8, gpus=1, gpu_models=("A100",))] * 12,
    {"A100": 5, "T4": 2},
)


def _node(name: str, *promised: float, model: str = "A100", **values: object) -> Node:
    devices = tuple(
        Device(id=str(i), model=model, promised=share, used=share) for i, share in enumerate(promised)
    )
    plain: dict[str, object] = {"cpus": 8, "memory_bytes": 8 * GIB, "cpus_used": 1, "metrics_age_s": 2.0}
    return Node(id=name, devices=devices, **(plain | values))  # type: ignore[arg-type]


CLUSTER = Snapshot.of(
    [
        _node("a", 0.0, 0.5, kernels=1),
        _node("b", 0.25, 0.0, warm=("py",), cpus_promised=2),
        _node("c", 0.0, model="T4", labels={"zone": "1"}),
        _node("d"),
        _node("e", memory_promised_bytes=GIB, kernels=3, labels={"zone": "1"}),
    ]
)


def test_the_runner_up_wins_if_the_winner_is_avoided() -> None:
    for request in (Request(cpus=1), Request(gpus=0.25), Request(gpus=1)):
        mine = get_policy("balanced", WORKLOAD)
        decision = mine.place(request, CLUSTER)
        avoid: dict[str, str] = {}
        for expected in [decision.placement, *decision.runners_up]:
            placement = mine.place(request, CLUSTER, avoid=avoid).placement
            assert placement == expected
            assert placement is not None
            avoid[placement.node_id] = "seen"
        assert mine.place(request, CLUSTER, avoid=avoid).placement is None


class Counting:
    """A scorer by free CPUs. It records the number of nodes of each call."""

    name, needs_metrics = "counting", False

    def __init__(self) -> None:
        self.counts: list[int] = []

    def score(self, request: Request, snapshot: Snapshot) -> NDArray[np.float64]:
        self.counts.append(len(snapshot))
        return np.asarray(snapshot.columns.cpus_free, dtype=np.float64)


def test_the_nodes_are_not_scored_again_to_explain_a_decision() -> None:
    nodes = Snapshot.of([Node(id=f"{number:03}", cpus=number % 50 + 1) for number in range(200)])
    scorer = Counting()
    decision = Pipeline(name="mine", scorers=((scorer, 1.0),)).place(Request(cpus=1), nodes)
    assert sum(scorer.counts) == 200
    scorer.counts.clear()
    ranked = decision.to_dict()
    assert scorer.counts == [10]
    assert [placement["node_id"] for placement in (ranked["placement"], *ranked["runners_up"])] == (
        ["049", "099", "149", "199", "048", "098", "148", "198", "047", "097"]
    )
    mine = Pipeline(name="mine", scorers=((scorer, 1.0),))
    other = mine.place(Request(cpus=1), nodes)
    with mine.cache.lock:  # another thread computes
        assert other.to_dict() == ranked
    later = nodes.apply([Node(id="000", cpus=90)])
    assert decision.to_dict() == ranked
    assert mine.place(Request(cpus=1), later).to_dict() != ranked


class TestRefused:
    def test_each_node_counts_once_by_its_most_lasting_refusal(self) -> None:
        nodes = [
            _node("a", 0.9, 0.9),
            _node("b", 0.6, is_draining=True),
            _node("c"),
            _node("d", 0.0, cpus_promised=7),
            _node("e", 0.9, cpus=2),
            _node("f", cpus=2),
        ]
        decision = get_policy("balanced").place(Request(gpus=0.5, cpus=4), Snapshot.of(nodes))
        assert decision.placement is None
        groups = [(g.filter, g.when, g.count, g.alone) for g in decision.refused]
        assert groups == [
            ("gpu", "never", 2, 1),  # c, and f, which lacks CPUs as well
            ("draining", "now", 1, 0),  # b lacks a GPU as well
            ("gpu", "now", 1, 1),  # a
            ("cpu", "now", 1, 1),  # d
            ("cpu", "never", 1, 0),  # e: its GPU is taken now, its CPUs will never do
        ]
        assert decision.reason == (
            "no node has room now for 0.5 GPU, 4 CPUs: 2 of 6 nodes have too few GPUs at all, 1 is draining, "
            "1 has too few GPUs free now, 1 has too few CPUs free now, 1 has too few CPUs at all"
        )
        assert decision.remedies == [
            "1 node would do but has too few GPUs free now; nearest a: needs 0.5 GPU, 0.1 free on the freest",
            "1 node would do but has too few CPUs free now; nearest d: needs 4 CPUs, 1 free",
        ]

    def test_a_node_that_nobody_drains_is_told_apart(self) -> None:
        nodes = [
            _node("a", is_draining=True),
            _node("b", is_draining=True, drains_because="unreachable: it does not answer"),
        ]
        decision = get_policy("balanced").place(Request(cpus=1), Snapshot.of(nodes))
        assert decision.refused == group_refusals(decision.refusals)
        assert decision.reason == (
            "no node has room now for 1 CPU: 1 of 2 nodes is draining, 1 cannot be reached now"
        )

    @pytest.mark.parametrize(
        ("request_", "nodes", "nearest"),
        [
            (
                Request(memory_bytes=6 * GIB),
                [
                    _node(n, memory_promised_bytes=p * GIB)
                    for n, p in zip("abcde", (5, 3, 7, 4, 6), strict=True)
                ],
                ["b", "d", "a"],
            ),
            (
                Request(cpus=6),
                [_node(n, cpus_promised=p) for n, p in zip("abcd", (5, 3, 7, 4), strict=True)],
                ["b", "d", "a"],
            ),
            (Request(gpus=1), [_node("a", 0.9), _node("b", 0.5, 0.5), _node("c", 0.2)], ["b", "c", "a"]),
        ],
        ids=["memory", "cpu", "gpu"],
    )
    def test_examples_are_the_nodes_nearest_to_fitting(
        self, request_: Request, nodes: list[Node], nearest: list[str]
    ) -> None:
        (group,) = get_policy("balanced").place(request_, Snapshot.of(nodes)).refused
        assert (group.when, group.count, group.alone) == ("now", len(nodes), len(nodes))
        assert [example.node_id for example in group.examples] == nearest

    def test_examples_begin_with_nodes_refused_for_one_reason(self) -> None:
        nodes = [_node("a", cpus_promised=5, memory_promised_bytes=8 * GIB), _node("b", cpus_promised=7)]
        decision = get_policy("pack").place(Request(cpus=4, memory_bytes=GIB), Snapshot.of(nodes))
        memory, cpu = sorted(decision.refused, key=lambda group: group.filter, reverse=True)
        assert (memory.filter, memory.count, memory.alone) == ("memory", 1, 0)
        assert (cpu.filter, cpu.count, cpu.alone) == ("cpu", 1, 1)
        full = [_node("a", cpus_promised=5, is_draining=True), _node("b", cpus_promised=7, is_draining=True)]
        (draining,) = get_policy("pack").place(Request(cpus=2), Snapshot.of(full)).refused
        assert [e.node_id for e in draining.examples] == ["a", "b"]
        assert (draining.count, draining.alone) == (2, 1)

    def test_a_decision_with_a_placement_has_groups_too(self) -> None:
        decision = get_policy("balanced").place(
            Request(cpus=4), Snapshot.of([_node("a"), _node("b", cpus=2)])
        )
        assert decision.placement is not None
        assert [(g.filter, g.when, g.count) for g in decision.refused] == [("cpu", "never", 1)]
        assert decision.refused[0].examples[0].reason == "needs 4 CPUs, has 2"
        assert (decision.is_never, decision.remedies) == (False, [])

    def test_avoided_nodes_that_do_not_fit_count_under_their_filter(self) -> None:
        nodes = Snapshot.of([_node("a", cpus=1), _node("b", cpus_promised=8), _node("c")])
        avoid = dict.fromkeys("abc", "refused this request a moment ago")
        decision = get_policy("balanced").place(Request(cpus=4), nodes, avoid=avoid)
        assert [(g.filter, g.when, g.count, g.alone) for g in decision.refused] == [
            ("cpu", "now", 1, 0),
            ("cpu", "never", 1, 0),
            ("avoid", "now", 1, 1),
        ]

    def test_no_groups_if_there_are_no_nodes_or_all_fit(self) -> None:
        assert get_policy("balanced").place(Request(gpus=1), Snapshot.of([])).refused == ()
        assert get_policy("balanced").place(Request(cpus=1), CLUSTER).refused == ()

    def test_a_pipeline_without_filters_refuses_nothing(self) -> None:
        decision = Pipeline(name="p", scorers=(), filters=()).place(Request(cpus=99), CLUSTER)
        assert decision.placement is not None
        assert (decision.refusals, decision.refused) == ((), ())


@pytest.mark.parametrize("full", [0, 1, 60, 199])
def test_refusals_among_many_nodes_are_those_of_each_node_alone(full: int) -> None:
    nodes = [_node(f"n{i:03}", 1.0 if i < full else 0.0, cpus_promised=8 if i % 3 == 0 and i < full else 0)
             for i in range(200)]  # fmt: skip
    request, avoid = Request(cpus=1, gpus=0.5), {"n150": "it was slow", "n000": "it was slow"}
    policy = get_policy("balanced")
    decision = policy.place(request, Snapshot.of(nodes), avoid=avoid)
    assert decision.placement is not None
    expected = [
        refusal
        for node in nodes
        for refusal in policy.place(
            request,
            Snapshot.of([node]),
            avoid={name: reason for name, reason in avoid.items() if name == node.id},
        ).refusals
    ]
    assert list(decision.refusals) == expected
    assert sum(group.count for group in decision.refused) == len({each.node_id for each in expected})
    assert {each.node_id for each in decision.runners_up}.isdisjoint({each.node_id for each in expected})
    assert decision.to_dict(refusals=2)["refusals"] == encode(expected[:2])


def test_ties_among_runners_up_go_to_the_smallest_node_ids() -> None:
    nodes = [Node(id=f"n{i:02}", cpus=4, kernels=i // 20) for i in range(40)]
    decision = get_policy("round_robin").place(Request(), Snapshot.of(nodes))
    assert [each.node_id for each in decision.runners_up] == [f"n{i:02}" for i in range(1, 10)]
