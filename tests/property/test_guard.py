"""Every decision that roost accepts from a policy, however wrong the policy is, fits on its node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from roost.placement import EPSILON, Decision, Device, Node, Placement, Request, Snapshot
from roost.scheduler.policies.decision_check import read_decision, write_decision

NAMES = ("a", "b", "c")
shares = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    return Node(
        id=name,
        cpus=4,
        memory_bytes=100,
        devices=tuple(Device(id=str(i), promised=draw(shares)) for i in range(draw(st.integers(0, 3)))),
        cpus_promised=draw(st.integers(0, 5)),
        resources={"licence": 2},
        resources_promised=draw(st.sampled_from([{}, {"licence": 1.5}, {"licence": 3}])),
        memory_promised_bytes=draw(st.integers(0, 120)),
        is_draining=draw(st.booleans()),
        taints=draw(st.sampled_from([(), ("lab",)])),
    )


requests = st.builds(
    Request,
    cpus=st.integers(0, 5),
    memory_bytes=st.integers(0, 120),
    gpus=st.sampled_from([0, 0.25, 0.5, 1, 2]),
    resources=st.sampled_from([{}, {"licence": 0.5}, {"tpu": 1}]),
    tolerates=st.sampled_from([(), ("lab",)]),
)
placements = st.builds(
    Placement,
    node_id=st.sampled_from([*NAMES, "d", 7, None]),
    device_ids=st.lists(st.sampled_from(["0", "1", "2", "3", 0]), max_size=3).map(tuple),
    score=st.floats(),
)


def crossed(answer: Decision, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> Decision:
    """Return the decision as the service gets it from the policy's process."""
    return read_decision(write_decision(answer, request, snapshot, avoid), request, snapshot, avoid)


@given(st.tuples(*map(nodes, NAMES)), requests, placements, st.sets(st.sampled_from(NAMES)))
def test_no_accepted_decision_over_commits(
    cluster: tuple[Node, ...], request: Request, placement: Placement, avoid: set[str]
) -> None:
    snapshot = Snapshot.of(cluster)
    answer: Any = Decision(request=request, policy="x", placement=placement)
    try:
        decision = crossed(answer, request, snapshot, dict.fromkeys(avoid, "is kept"))
    except (ValueError, TypeError):
        return
    assert decision.placement is not None
    node = snapshot.node(decision.placement.node_id)
    assert node.id not in avoid
    assert not node.is_draining
    assert set(node.taints) <= set(request.tolerates)
    after = node.with_kernel(request, decision.placement.device_ids)
    if request.cpus:
        assert after.cpus_free >= -EPSILON
    if request.memory_bytes:
        assert after.memory_free_bytes >= 0
    if request.gpus:
        assert after.gpus_free >= -EPSILON
    for name in request.resources:
        assert after.resource_free(name) >= -EPSILON
    used = [device for device in after.devices if device.id in decision.placement.device_ids]
    assert all(device.free >= -EPSILON for device in used)
    assert len(used) in (0, request.gpu_count)


def test_a_decision_that_fits_is_accepted() -> None:
    snapshot = Snapshot.of([Node(id="a", cpus=4, devices=(Device(id="0"),))])
    request = Request(cpus=1, gpus=0.5)
    for devices in ((), ("0",)):
        placement = Placement(node_id="a", device_ids=devices)
        answer = Decision(request=request, policy="x", placement=placement)
        assert crossed(answer, request, snapshot, {}).placement == placement
    with pytest.raises(ValueError, match="which is kept"):
        crossed(answer, request, snapshot, {"a": "is kept"})
