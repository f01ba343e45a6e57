"""The decision of a foreign policy is checked, crosses as JSON, and is checked again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from kit.fakes.client_policies import CLUSTER, HALF, Always, placed
from roost.placement import NOWHERE, Decision, Pipeline, Refusal, Request, Snapshot, get_policy
from roost.scheduler.policies.decision_check import read_decision, write_decision


def written(policy: Any, request: Request = HALF) -> bytes:
    return write_decision(policy.place(request, CLUSTER), request, CLUSTER, NOWHERE)


BAD: dict[str, tuple[Always, str]] = {
    "no decision": (Always(lambda *_: "small"), r"place gave str, not a Decision"),
    "nothing": (Always(lambda *_: None), r"place gave NoneType"),
    "no such node": (placed("mars"), r"it chose 'mars', but there is no such node"),
    "node by number": (placed(7), r"it chose 7, but there is no such node"),  # type: ignore[arg-type]
    "full node": (placed("full", "0"), r"it chose full, which needs 0.5 GPU, 0 free"),
    "no such device": (
        placed("small", "9"),
        r"it chose device '9' of small, which is missing or not free",
    ),
    "device by number": (placed("small", 0), r"it chose device 0 of small"),
    "two devices": (placed("big", "0", "1"), r"it chose 2 devices \(0, 1\) for 0.5 GPU"),
    "not a number": (placed("small", "0", score=np.nan), r"its score for small is not a finite number"),
    "no reasons": (Always(lambda r, _: Decision(request=r, policy="x")), r"neither a node nor a refusal"),
    "unknown refusal": (
        Always(
            lambda r, _: Decision(
                request=r,
                policy="x",
                refusals=(Refusal(node_id="mars", filter="gpu", reason="is far", when="now"),),
            )
        ),
        r"which is not a node",
    ),
    "odd values": (placed("small", "0", metrics_age_s=object()), r"float\(\) argument"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_impossible_decision_is_not_written(kind: str) -> None:
    bad, says = BAD[kind]
    with pytest.raises((TypeError, ValueError), match=says):
        written(bad)


class Ones:
    """A scorer with the scores of the test."""

    name = "ones"
    needs_metrics = False

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def score(self, request: Request, snapshot: Snapshot) -> Any:
        return self.scores(snapshot)


@pytest.mark.parametrize(
    "scores",
    [
        lambda snapshot: np.full(len(snapshot), np.nan),
        lambda snapshot: np.ones(len(snapshot) + 1),
        lambda snapshot: np.full(snapshot.columns.device_free.shape, np.inf),
    ],
)
def test_a_scorer_that_misbehaves_is_named(scores: Any) -> None:
    with pytest.raises(ValueError, match="scorer 'ones' must give one finite number per node"):
        written(Pipeline(name="p", scorers=((Ones(scores), 1.0),)))


@pytest.mark.parametrize("request_", [HALF, Request(gpus=64), Request(cpus=60, gpus=1)])
def test_a_decision_is_the_same_on_the_other_side(request_: Request) -> None:
    before = get_policy("pack").place(request_, CLUSTER)
    after = read_decision(written(get_policy("pack"), request_), request_, CLUSTER, NOWHERE)
    assert after.to_dict() == before.to_dict()
    assert (after.request, tuple(after.refusals)) == (request_, tuple(before.refusals))


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(written(get_policy("pack"))), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense",
        b"[]",
        b"{}",
        changed(placement=7),
        changed(placement={"node_id": "mars"}),
        changed(placement={"node_id": "full"}),
        changed(placement={"node_id": ["big"]}),
        changed(all_refusals=7),
        changed(all_refusals=[["big"]]),
        changed(all_refusals=[["mars", "gpu", "is far", "now"]]),
        changed(all_refusals=[["big", "gpu", "is far", "later"]]),
        changed(all_refusals=[["big", "gpu", 7, "now"]]),
        changed(placement=None, refused=[], all_refusals=[]),
    ],
)
def test_a_changed_answer_is_refused(content: bytes) -> None:
    """The policy's code runs in the process that writes the answer. It could write anything."""
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        read_decision(content, HALF, CLUSTER, NOWHERE)
