"""Decisions: their texts for people and their JSON for programs."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from roost.placement import Decision, Node, Placement, Refusal, RefusalGroup, Request, Snapshot, get_policy
from roost.placement.decision import SHOWN_REFUSALS
from roost.placement.rules.refusals import When, group_refusals


def _refused(*refusals: tuple[str, str, str, When], request: Request | None = None) -> Decision:
    return Decision(
        request=request or Request(gpus=1),
        policy="balanced",
        refusals=tuple(Refusal(node_id=n, filter=f, reason=r, when=w) for n, f, r, w in refusals),
    )


def test_reason_counts_nodes_by_what_they_lack() -> None:
    decision = _refused(
        ("a", "gpu", "needs 1 GPU, 0.25 free", "now"),
        ("b", "gpu", "needs 1 GPU, 0 free", "now"),
        ("c", "gpu", "needs 1 GPU, has none", "never"),
    )
    assert decision.reason == (
        "no node has room now for 1 GPU: 2 of 3 nodes have too few GPUs free now, 1 has too few GPUs at all"
    )
    assert not decision.is_never


def test_reason_for_one_node_gives_its_figures() -> None:
    decision = _refused(("local", "gpu", "needs 1 GPU, 0.25 free", "now"))
    assert decision.reason == "no node has room now for 1 GPU (local: needs 1 GPU, 0.25 free)"


def test_never_outweighs_now_on_the_same_node() -> None:
    decision = _refused(
        ("a", "draining", "is draining", "now"),
        ("a", "memory", "needs 8 GiB memory, has 4 GiB", "never"),
        ("b", "memory", "needs 8 GiB memory, has 4 GiB", "never"),
        ("b", "avoid", "refused this request a moment ago", "now"),
        request=Request(memory_bytes=2**33),
    )
    assert decision.is_never
    assert (
        decision.reason == "no node could ever hold 8 GiB memory: 2 of 2 nodes have too little memory at all"
    )
    advice = "waiting does not help: ask for less, or add a node that has it"
    assert decision.advised_reason == f"{decision.reason}; {advice}"


def test_own_filters_are_named() -> None:
    decision = _refused(("a", "licence", "no licence", "now"), ("b", "licence", "no licence", "now"))
    assert decision.reason == (
        "policy balanced gives no node now for 1 GPU: 2 of 2 nodes are refused by policy balanced (licence); "
        "nearest a: no licence"
    )
    assert decision.to_dict()["is_policys_refusal"]
    mixed = _refused(("a", "licence", "no licence", "now"), ("b", "gpu", "needs 1 GPU, 0 free", "now"))
    assert not mixed.is_policys_refusal
    assert decision.remedies == [
        (
            "2 nodes would do but are refused by policy balanced (licence); nearest a: no licence: "
            "that is policy balanced's doing: another policy may take it"
        )
    ]


def test_such_gpus_means_gpus_of_the_requested_model() -> None:
    two: tuple[tuple[str, str, str, When], ...] = (
        ("a", "gpu", "needs 1 GPU of model T4, has none", "never"),
        ("b", "gpu", "needs 1 GPU of model T4, has none", "never"),
    )
    assert "have too few GPUs at all" in _refused(*two).reason
    assert (
        "have too few such GPUs at all" in _refused(*two, request=Request(gpus=1, gpu_memory_bytes=1)).reason
    )
    decision = _refused(*two, request=Request(gpus=1, gpu_models=("T4",)))
    assert "have too few such GPUs at all" in decision.reason
    assert decision.to_dict()["refused"][0]["text"] == "2 nodes have too few such GPUs at all"


def test_no_nodes_is_not_never() -> None:
    decision = _refused()
    assert (decision.reason, decision.is_never) == ("there are no nodes", False)


NO_GPU = Refusal(node_id="c", filter="gpu", reason="needs 0.5 GPU, has none", when="never")


@pytest.fixture
def full() -> Decision:
    return Decision(
        request=Request(gpus=0.5, labels={"zone": "a"}),
        policy="balanced",
        placement=Placement(node_id="a", device_ids=("0",), score=1.5, terms={"gpu": 0.5, "memory": 1.0}),
        runners_up=(Placement(node_id="b", device_ids=("3",), score=1.0),),
        refusals=(NO_GPU,),
        refused=(RefusalGroup(filter="gpu", when="never", count=1, alone=1, examples=(NO_GPU,)),),
        fallback="ranked by round robin, since no node that fits has metrics",
        metrics_age_s=1.25,
        snapshot_version=4,
    )


def test_lines_contain_the_whole_decision(full: Decision) -> None:
    assert full.lines() == [
        "a ranks first (gpu 0.5, memory 1); ranked by round robin, since no node that fits has metrics",
        "1. a on 0: 1.5 (gpu 0.5, memory 1)",
        "2. b on 3: 1",
        "c: never, needs 0.5 GPU, has none",
        "policy balanced, metrics 1.2 s old",
    ]


def test_decision_survives_json_and_pickle(full: Decision) -> None:
    data = full.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert Decision.from_dict(data) == full
    assert pickle.loads(pickle.dumps(full)) == full
    assert (data["reason"], data["is_never"], data["remedies"]) == (full.reason, False, [])
    assert data["refused"][0]["text"] == "1 node has too few GPUs at all"


def test_groups_counted_from_refusals_survive_json() -> None:
    decision = _refused(("a", "gpu", "needs 1 GPU, 0 free", "now"))
    data = decision.to_dict()
    again = Decision.from_dict(json.loads(json.dumps(data)))
    assert again.to_dict() == data
    assert again.refused == group_refusals(decision.refusals)
    assert data["remedies"] == [
        "1 node would do but has too few GPUs free now; nearest a: needs 1 GPU, 0 free"
    ]


def test_at_most_shown_refusals_are_written() -> None:
    many = [(f"n{i:04}", "gpu", "needs 1 GPU, 0 free", "now") for i in range(SHOWN_REFUSALS + 5)]
    decision = _refused(*many)  # type: ignore[arg-type]
    data = decision.to_dict()
    assert len(data["refusals"]) == SHOWN_REFUSALS
    assert data["refused"][0]["count"] == SHOWN_REFUSALS + 5
    assert Decision.from_dict(data).reason == decision.reason
    assert sum("not now" in line for line in decision.lines()) == SHOWN_REFUSALS


def test_groups_count_each_node_once_and_begin_with_nodes_refused_for_one_reason() -> None:
    refusals = _refused(
        ("a", "gpu", "a lacks a GPU", "now"),
        ("a", "cpu", "a lacks a CPU", "now"),
        ("b", "gpu", "b lacks a GPU", "now"),
        ("c", "cpu", "c lacks a CPU", "now"),
        ("c", "memory", "c has no memory", "never"),
    ).refusals
    gpu, memory = group_refusals(refusals)
    assert (gpu.filter, gpu.when, gpu.count, gpu.alone) == ("gpu", "now", 2, 1)
    assert [example.node_id for example in gpu.examples] == ["b", "a"]
    assert (memory.filter, memory.when, memory.count, memory.alone) == ("memory", "never", 1, 0)
    assert (gpu.describe(2), memory.describe(1)) == (
        "have too few GPUs free now",
        "has too little memory at all",
    )


class TestRemedies:
    def test_none_where_there_is_a_placement(self, full: Decision) -> None:
        assert full.remedies == []

    def test_single_reasons_become_remedies(self) -> None:
        decision = _refused(
            ("a", "memory", "needs 8 GiB memory, 4 GiB free", "now"),
            ("b", "memory", "needs 8 GiB memory, 2 GiB free", "now"),
            ("c", "draining", "is draining", "now"),
            ("d", "gpu", "needs 1 GPU, has none", "never"),
            ("e", "taints", "is kept for kernels that tolerate lab", "never"),
        )
        assert decision.remedies == [
            "2 nodes would do but have too little memory free now; nearest a: needs 8 GiB memory, 4 GiB free",
            "1 node would do but is draining: `roost drain c --off` lets kernels on it again",
            (
                "1 node would do but is kept for others (a taint); nearest e: is kept for kernels that tolerate lab: "
                "say what the kernel tolerates (`--tolerate NAME`, in a kernelspec `tolerates`)"
            ),
        ]
        assert decision.lines()[-3:] == decision.remedies

    def test_only_an_operators_drain_can_be_switched_off(self) -> None:
        ended = ("b", "draining", "its daemon has ended", "now")
        assert _refused(ended).remedies == [
            "1 node would do but is draining; nearest b: its daemon has ended"
        ]
        assert "`roost drain c --off`" in _refused(ended, ("c", "draining", "is draining", "now")).remedies[0]

    def test_several_shortages_at_once(self) -> None:
        decision = _refused(
            ("a", "gpu", "needs 1 GPU, 0 free", "now"), ("a", "cpu", "needs 4 CPUs, 1 free", "now")
        )
        assert decision.remedies == ["more than one thing is short on every node that could hold it"]

    def test_waiting_does_not_help_if_no_node_is_large_enough(self) -> None:
        decision = _refused(("a", "gpu", "needs 1 GPU, has none", "never"))
        assert decision.remedies == ["waiting does not help: ask for less, or add a node that has it"]

    @pytest.mark.parametrize(
        ("refusal", "says"),
        [
            (("a", "labels", "needs label zone=a, has zone=b", "never"), "ask for another label"),
            (("a", "taints", "is kept for kernels that tolerate lab", "never"), "`--tolerate NAME`"),
            (("a", "licence", "no licence", "never"), "that is policy balanced's doing"),
        ],
    )
    def test_no_advice_to_ask_for_less_if_amounts_are_not_short(
        self, refusal: tuple[str, str, str, When], says: str
    ) -> None:
        alone, with_more = (
            _refused(refusal),
            _refused(refusal, ("a", "gpu", "needs 1 GPU, 0 free", "now")),
        )
        assert says in alone.remedies[0]
        assert alone.remedies[1:] == ["waiting does not help"]
        (only,) = with_more.remedies
        assert only.startswith("waiting does not help: ")
        assert says in only
        assert "less" not in f"{alone.remedies}{with_more.remedies}"

    def test_amounts_short_on_one_node_and_a_label_missing_on_another(self) -> None:
        decision = _refused(
            ("a", "gpu", "needs 1 GPU, has none", "never"), ("b", "labels", "has no label zone", "never")
        )
        assert decision.remedies[-1] == "waiting does not help: ask for less, or add a node that has it"

    def test_no_nodes(self) -> None:
        assert _refused().remedies == ["there are no nodes: add one"]


class TestExplanationOnDemand:
    """A pipeline's decision computes its explanation only when somebody reads it, and only once."""

    @pytest.fixture
    def decision(self) -> Decision:
        nodes = [Node(id="a", cpus=1), Node(id="b"), Node(id="c"), Node(id="d", cpus=1)]
        return get_policy("round_robin").place(Request(cpus=1), Snapshot.of(nodes))

    def test_each_part_is_computed_when_it_is_first_read(
        self, decision: Decision, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed: list[str] = []

        def reason(self: object, request: Request, node: Node) -> str:
            computed.append(node.id)
            return "is full"

        monkeypatch.setattr("roost.placement.rules.filters.HasCpus.reason", reason)
        assert decision.is_explained
        assert [refusal.node_id for refusal in decision.first_refusals(1)] == ["b"]
        assert computed == ["b"]
        del computed[:]
        assert [refusal.node_id for refusal in decision.refusals] == ["b", "c"]
        assert decision.refusals is decision.refusals
        assert decision.first_refusals(None) == decision.refusals
        assert computed == ["b", "c"]

    def test_a_failed_computation_is_tried_again(
        self, decision: Decision, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("roost.placement.rules.filters.HasCpus.reason", None)
            with pytest.raises(TypeError):
                len(decision.refusals)
        assert len(decision.refusals) == 2

    def test_an_unknown_attribute_is_an_error(self, decision: Decision) -> None:
        with pytest.raises(AttributeError, match="no_such_name"):
            decision.no_such_name  # type: ignore[attr-defined]  # noqa: B018

    def test_pickle_and_comparison_see_plain_values(self, decision: Decision) -> None:
        plain = pickle.loads(pickle.dumps(decision))
        assert plain == decision
        assert {type(plain.refusals), type(plain.refused), type(plain.runners_up)} == {tuple}
        assert plain.placement == Placement(node_id="a", score=-1.0, terms={"kernels": -1.0})
        assert (type(plain.placement.terms), hash(plain)) == (dict, hash(decision))

    def test_changed_fields_leave_the_explanation_uncomputed(
        self, decision: Decision, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("roost.placement.rules.filters.HasCpus.reason", None)
            changed = decision.changed_to(policy="mine", fallback="for a reason")
        assert (changed.policy, changed.fallback, decision.policy) == ("mine", "for a reason", "round_robin")
        assert changed.refusals == decision.refusals
        assert replace(decision, policy="mine", fallback="for a reason") == changed
        assert (changed.changed_to(refusals=()).refusals, changed.changed_to(refused=()).refused) == ((), ())
        assert pickle.loads(pickle.dumps(decision)).changed_to(policy="mine").refusals == changed.refusals
