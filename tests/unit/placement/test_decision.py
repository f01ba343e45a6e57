"""Decisions: what they say to people and to programs."""

from __future__ import annotations

import json
import pickle

import pytest

from roost.placement import Decision, Placement, Refusal, Request
from roost.placement.decision import When


def _refused(*refusals: tuple[str, str, str, When], request: Request | None = None) -> Decision:
    return Decision(
        request=request or Request(gpus=1),
        policy="default",
        refusals=tuple(Refusal(node_id=n, filter=f, reason=r, when=w) for n, f, r, w in refusals),
    )


def test_reason_counts_nodes_by_what_they_lack() -> None:
    decision = _refused(
        ("a", "gpu", "needs 1 GPU, 0.25 free", "now"),
        ("b", "gpu", "needs 1 GPU, 0 free", "now"),
        ("c", "gpu", "needs 1 GPU, has none", "never"),
    )
    assert decision.reason == (
        "no node has room now for 1 GPU: 2 of 3 nodes have too few GPUs free now, 1 has too few such GPUs at all"
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


def test_own_filters_are_named() -> None:
    decision = _refused(("a", "licence", "no licence", "now"), ("b", "licence", "no licence", "now"))
    assert decision.reason == "no node has room now for 1 GPU: 2 of 2 nodes are refused by licence"


def test_no_nodes_is_not_never() -> None:
    decision = _refused()
    assert (decision.reason, decision.is_never) == ("there are no nodes", False)


@pytest.fixture
def full() -> Decision:
    return Decision(
        request=Request(gpus=0.5, labels={"zone": "a"}),
        policy="default",
        placement=Placement(node_id="a", device_ids=("0",), score=1.5, terms={"gpu": 0.5, "memory": 1.0}),
        runners_up=(Placement(node_id="b", device_ids=("3",), score=1.0),),
        refusals=(Refusal(node_id="c", filter="gpu", reason="needs 0.5 GPU, has none", when="never"),),
        fallback="ranked by round robin, since no node that fits has metrics",
        metrics_age_s=1.25,
        snapshot_version=4,
    )


def test_lines_say_all_of_it(full: Decision) -> None:
    assert full.lines() == [
        "a ranks first (gpu 0.5, memory 1); ranked by round robin, since no node that fits has metrics",
        "1. a on 0: 1.5 (gpu 0.5, memory 1)",
        "2. b on 3: 1",
        "c: never, needs 0.5 GPU, has none",
        "policy default, metrics 1.2 s old",
    ]


def test_decision_survives_json_and_pickle(full: Decision) -> None:
    for decision in (full, _refused(("a", "gpu", "needs 1 GPU, 0 free", "now"))):
        data = decision.to_dict()
        assert json.loads(json.dumps(data)) == data
        assert Decision.from_dict(data) == decision
        assert pickle.loads(pickle.dumps(decision)) == decision
        assert (data["reason"], data["is_never"]) == (decision.reason, decision.is_never)
