"""Properties of all shipped policies, for every request and every cluster."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from roost.placement import (
    EPSILON,
    Decision,
    Device,
    Node,
    Pipeline,
    Policy,
    Request,
    Snapshot,
    Workload,
    get_policy,
)
from roost.placement.engine.class_scores import apply_filters
from roost.placement.rules.refusals import group_refusals
from roost.placement.shipped_policies import SHIPPED

WORKLOAD = Workload.of(
    [Request(cpus=1, gpus=0.25)] * 9
    + [Request(cpus=4, gpus=1, gpu_models=("A100",))] * 6
    + [Request(cpus=8, gpus=2)] * 5
    + [Request(cpus=2)] * 4,
    {"A100": 8, "T4": 8},
)
POLICIES = st.builds(
    lambda name, workload: get_policy(name, workload),
    st.sampled_from(list(SHIPPED)),
    st.sampled_from([Workload(), WORKLOAD]),
)
SHARES = st.sampled_from([0.0, 0.1, 0.19, 0.25, 0.5, 0.6, 0.7, 1.0])
USE = st.none() | SHARES
MODELS = st.sampled_from(["A100", "T4"])
AGES = st.none() | st.sampled_from([0.0, 29.0, 31.0])
TAINTS = st.sampled_from([(), (), ("spot",), ("spot", "team")])
TOTALS = st.sampled_from([{}, {"licence": 1.5}, {"licence": 1.0, "tpu": 4.0}])
RESOURCES = st.sampled_from([{}, {}, {"licence": 0.5}, {"licence": 1.5}, {"licence": 0.3, "tpu": 1.0}])
LABELS = st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from(["a", "b"]), max_size=2)


@st.composite
def devices(draw: st.DrawFn) -> tuple[Device, ...]:
    return tuple(
        Device(id=str(i), model=draw(MODELS), promised=draw(SHARES), used=draw(USE))
        for i in range(draw(st.integers(0, 4)))
    )


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    """Draw a node whose promises do not exceed its totals."""
    owned = draw(devices())
    known = sum(device.promised for device in owned)
    cpus, memory = draw(st.sampled_from([0.0, 0.5, 2.0, 8.0])), draw(st.sampled_from([0, 100, 1000]))
    resources = draw(TOTALS)
    return Node(
        id=name,
        labels=draw(LABELS),
        resources=resources,
        resources_promised={name: total * draw(SHARES) for name, total in resources.items()},
        cpus=cpus,
        memory_bytes=memory,
        devices=owned,
        cpus_promised=cpus * draw(SHARES),
        memory_promised_bytes=int(memory * draw(SHARES)),
        gpus_promised=draw(st.sampled_from([0.0, known, (known + len(owned)) / 2])),
        cpus_used=draw(st.none() | st.sampled_from([0.0, 1.0, 3.0])),
        memory_used_bytes=draw(st.none() | st.sampled_from([0, 50, 2000])),
        kernels=draw(st.integers(0, 3)),
        is_draining=draw(st.booleans()) and draw(st.booleans()),
        taints=draw(TAINTS),
        warm=draw(st.sampled_from([(), ("py",)])),
        metrics_age_s=draw(AGES),
    )


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    return [draw(nodes(name)) for name in "dbac"[: draw(st.integers(0, 4))]]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    gpus = draw(st.sampled_from([0, 0, 0.1, 0.25, 0.3, 0.75, 1, 2, 3]))
    return Request(
        cpus=draw(st.sampled_from([0, 0.1, 0.3, 1, 4])),
        memory_bytes=draw(st.sampled_from([0, 1, 70, 500])),
        gpus=gpus,
        gpu_models=draw(st.sampled_from([(), ("A100",), ("A100", "T4")])) if gpus else (),
        labels=draw(st.just({}) | LABELS),
        near=draw(st.just({}) | LABELS),
        resources=draw(RESOURCES),
        tolerates=draw(TAINTS),
        environment=draw(st.sampled_from(["", "py"])),
    )


def _fits(request: Request, node: Node) -> bool:
    """True if the request fits on the node, by roost's rules written again in plain Python."""
    amounts = (
        not request.cpus or node.cpus - node.cpus_promised >= request.cpus - EPSILON,
        not request.memory_bytes or node.memory_bytes - node.memory_promised_bytes >= request.memory_bytes,
        all(node.labels.get(name) == value for name, value in request.labels.items()),
        set(node.taints) <= set(request.tolerates),
        not node.is_draining,
        all(
            node.resources.get(name, 0) - node.resources_promised.get(name, 0) >= asked - EPSILON
            for name, asked in request.resources.items()
        ),
    )
    if not request.gpus:
        return all(amounts)
    free = [1 - d.promised for d in node.devices if not request.gpu_models or d.model in request.gpu_models]
    enough = sum(share >= min(request.gpus, 1) - EPSILON for share in free) >= max(1, int(request.gpus))
    held = max(node.gpus_promised, sum(device.promised for device in node.devices))
    return all(amounts) and enough and len(node.devices) - held >= request.gpus - EPSILON


@given(clusters(), requests(), POLICIES)
def test_a_placement_exists_exactly_if_a_node_fits(
    cluster: list[Node], request: Request, chosen: Policy
) -> None:
    decision = chosen.place(request, Snapshot.of(cluster))
    ranked = ([decision.placement] if decision.placement else []) + list(decision.runners_up)
    assert {p.node_id for p in ranked} == {node.id for node in cluster if _fits(request, node)}
    assert {r.node_id for r in decision.refusals} == {node.id for node in cluster if not _fits(request, node)}
    by_id = {node.id: node for node in cluster}
    for placement in ranked:
        fitting = [device.id for device in by_id[placement.node_id].fitting_devices(request)]
        assert len(set(placement.device_ids)) == len(placement.device_ids) == request.gpu_count
        assert set(placement.device_ids) <= set(fitting)
    assert [p.score for p in ranked] == sorted((p.score for p in ranked), reverse=True)
    assert all(abs(p.score - sum(p.terms.values())) < 1e-6 for p in ranked)


class Plain:
    """A filter or scorer whose shortcuts `applies` and `least` are hidden."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        if name in ("applies", "least"):
            raise AttributeError(name)
        return getattr(self._part, name)


@given(clusters(), requests(), POLICIES)
def test_shortcuts_lead_to_the_same_decision(cluster: list[Node], request: Request, chosen: Policy) -> None:
    assert isinstance(chosen, Pipeline)
    filters = tuple(Plain(rule) for rule in chosen.filters)
    scorers = tuple((Plain(scorer), weight) for scorer, weight in chosen.scorers)
    plain = replace(chosen, filters=filters, scorers=scorers)
    snapshot = Snapshot.of(cluster)
    short, long = (each.score(request, snapshot, each.scorers) for each in (chosen, plain))
    assert short.totals.tolist() == long.totals.tolist()
    assert short.devices.tolist() == long.devices.tolist()
    passed = [mask for mask in apply_filters(request, snapshot, chosen.filters) if mask is not None]
    assert (short.totals > -np.inf).tolist() == np.all([[True] * len(cluster), *passed], axis=0).tolist()


@given(clusters(), requests(), POLICIES)
def test_never_means_that_the_empty_node_is_too_small(
    cluster: list[Node], request: Request, chosen: Policy
) -> None:
    decision = chosen.place(request, Snapshot.of(cluster))
    never = {refusal.node_id for refusal in decision.refusals if refusal.when == "never"}
    assert never == {node.id for node in cluster if not _fits(request, node.as_empty())}
    assert decision.is_never == (bool(cluster) and len(never) == len(cluster))
    counted = sorted((g.filter, g.when, g.count, g.alone) for g in decision.refused)
    assert counted == sorted((g.filter, g.when, g.count, g.alone) for g in group_refusals(decision.refusals))


@given(clusters(), st.lists(requests(), max_size=25), POLICIES)
def test_placements_never_over_commit(cluster: list[Node], asked: list[Request], chosen: Policy) -> None:
    snapshot, held = Snapshot.of(cluster), []
    for request in asked:
        placement = chosen.place(request, snapshot).placement
        if placement is not None:
            node = snapshot.node(placement.node_id).with_kernel(request, placement.device_ids)
            snapshot = snapshot.apply([node])
            held.append((placement, request))
    before = {node.id: node for node in cluster}
    for node in map(snapshot.node, snapshot.nodes):
        assert node.cpus_promised <= node.cpus + 2 * EPSILON
        assert node.memory_promised_bytes <= node.memory_bytes
        assert node.gpus_promised <= node.gpus + 2 * EPSILON
        for name, promised in node.resources_promised.items():
            assert promised <= node.resources[name] + 2 * EPSILON
        assert all(device.promised <= 1 + 2 * EPSILON for device in node.devices)
        gained = sum(d.promised for d in node.devices) - sum(d.promised for d in before[node.id].devices)
        assert abs(gained - sum(r.gpus for p, r in held if p.node_id == node.id)) < 1e-6


@given(clusters(), requests(), POLICIES, st.randoms(use_true_random=False))
def test_the_decision_depends_on_the_nodes_alone(
    cluster: list[Node], request: Request, chosen: Policy, shuffle: random.Random
) -> None:
    expected = chosen.place(request, Snapshot.of(cluster, version=9))
    shuffled = list(cluster)
    shuffle.shuffle(shuffled)
    assert chosen.place(request, Snapshot.of(shuffled, version=9)) == expected
    grown = Snapshot.of([], version=9 - len(cluster))
    for node in shuffled:
        grown = grown.apply([node])
    assert chosen.place(request, grown) == expected


@given(clusters(), requests(), POLICIES, st.data())
def test_more_resources_never_hurt(
    cluster: list[Node], request: Request, chosen: Policy, data: st.DataObject
) -> None:
    if chosen.place(request, Snapshot.of(cluster)).placement is None:
        return
    grown = []
    for node in cluster:
        extra = Device(id="extra", model=data.draw(MODELS), promised=data.draw(SHARES))
        kept = tuple(replace(d, promised=d.promised * data.draw(SHARES)) for d in node.devices)
        grown.append(
            replace(
                node,
                cpus=node.cpus + data.draw(SHARES),
                resources={**node.resources, "tpu": node.resources.get("tpu", 0.0) + data.draw(SHARES)},
                memory_bytes=node.memory_bytes + data.draw(st.integers(0, 99)),
                memory_promised_bytes=int(node.memory_promised_bytes * data.draw(SHARES)),
                devices=(*kept, extra) if data.draw(st.booleans()) else kept,
            )
        )
    if data.draw(st.booleans()):
        grown.append(data.draw(nodes("e")))
    assert chosen.place(request, Snapshot.of(grown)).placement is not None


def _content(snapshot: Snapshot) -> list[Node]:
    return [snapshot.node(node_id) for node_id in snapshot.nodes]


@given(clusters(), clusters(), st.sets(st.sampled_from("abcdz")), requests(), POLICIES)
def test_apply_then_its_inverse_is_the_identity(
    cluster: list[Node], upserts: list[Node], removed: set[str], request: Request, chosen: Policy
) -> None:
    before = Snapshot.of(cluster)
    after = before.apply(upserts, removed)
    back = after.apply(_content(before), [node_id for node_id in after.nodes if node_id not in before])
    assert _content(back) == _content(before) == sorted(cluster, key=lambda node: node.id)
    assert replace(chosen.place(request, back), snapshot_version=1) == chosen.place(request, before)


@given(clusters(), requests(), POLICIES)
def test_decisions_survive_json_and_hold_plain_values(
    cluster: list[Node], request: Request, chosen: Policy
) -> None:
    decision = chosen.place(request, Snapshot.of(cluster))
    data = decision.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert Decision.from_dict(json.loads(json.dumps(data))) == decision
    assert all(type(value) in (str, int, float, bool, type(None)) for value in _leaves(data))
    assert all(line and "\n" not in line for line in decision.lines())


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in (*value.keys(), *value.values()) for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
