"""Snapshots: versions, copies on write, and columns that agree with the nodes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from roost.placement import Columns, Device, Node, Request, Snapshot
from roost.placement.tables import changes
from roost.placement.tables.columns import COLUMNS, Table


def _node(name: str, gpus: int = 0, **values: object) -> Node:
    devices = tuple(Device(id=str(i), model="A100") for i in range(gpus))
    return Node(id=name, cpus=4, memory_bytes=2**33, devices=devices, **values)  # type: ignore[arg-type]


def _same(one: Columns, other: Columns) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in COLUMNS)


def test_rows_are_in_the_order_of_ids() -> None:
    snapshot = Snapshot.of([_node("b"), _node("a", gpus=2)], version=7)
    assert (snapshot.nodes, snapshot.version, len(snapshot)) == (("a", "b"), 7, 2)
    assert snapshot.columns.gpus.tolist() == [2, 0]
    assert snapshot.columns.device_free.tolist() == [[1.0, 1.0], [-np.inf, -np.inf]]
    assert "a" in snapshot
    assert snapshot.row("b") == 1
    with pytest.raises(KeyError):
        snapshot.node("c")


def test_two_nodes_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="two nodes have the id 'a'"):
        Snapshot.of([_node("a"), _node("a")])


def test_columns_cannot_be_written() -> None:
    snapshot = Snapshot.of([_node("a")]).apply(upserts=[_node("a", kernels=1)])
    with pytest.raises(ValueError, match="read-only"):
        snapshot.columns.cpus_free[0] = 0


def test_no_policy_can_write_into_what_it_gets() -> None:
    """A part of a snapshot is read-only, and so is a part of the table from which a pipeline scores nodes."""
    snapshot = Snapshot.of([_node("a"), _node("b", gpus=1)])
    table = Table.of(snapshot.columns)
    for columns in (snapshot.part(np.array([0])).columns, table.part(slice(0, 1)), table.part(np.array([0]))):
        for name in COLUMNS:
            with pytest.raises(ValueError, match="read-only"):
                getattr(columns, name)[:] = 0


def test_kernels_of_a_user_follow_changes() -> None:
    first = Snapshot.of([_node("a"), _node("b"), _node("c")])
    second = first.apply([first.node("b").with_kernel(Request(owner="ada"))])
    assert second.version == 2
    assert (first.kernels_of("ada").tolist(), second.kernels_of("ada").tolist()) == ([0, 0, 0], [0, 1, 0])
    assert second.part(np.array([2, 1])).kernels_of("ada").tolist() == [0, 1]
    assert second.as_empty().kernels_of("ada").tolist() == [0, 0, 0]
    third = second.apply([replace(second.node("b"), owners={"bob": 1})])
    assert third.kernels_of("ada").tolist() == [0, 0, 0]
    assert third.kernels_of("bob").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("upserts", "removed"),
    [
        ([_node("b", gpus=1, kernels=3)], []),
        ([_node("b", gpus=4)], []),
        ([_node("a", gpus=0)], []),
        ([_node("aa", gpus=3), _node("z")], []),
        ([], ["a"]),
        ([_node("c"), _node("b", is_draining=True)], ["a", "b", "unknown"]),
        ([_node("b")], ["b"]),
        ([], []),
        ([], ["a", "b"]),
    ],
)
def test_apply_equals_a_new_snapshot_of_the_nodes(upserts: list[Node], removed: list[str]) -> None:
    before = Snapshot.of([_node("a", gpus=2), _node("b")])
    after = before.apply(upserts, removed)
    expected = {n.id: n for n in (_node("a", gpus=2), _node("b")) if n.id not in removed} | {
        n.id: n for n in upserts
    }
    fresh = Snapshot.of(expected.values())
    assert after.version == before.version + 1
    assert after.nodes == fresh.nodes
    assert [after.node(i) for i in after.nodes] == [fresh.node(i) for i in fresh.nodes]
    assert _same(after.columns, fresh.columns)
    assert _same(before.columns, Snapshot.of([_node("a", gpus=2), _node("b")]).columns)


def test_unchanged_columns_are_shared() -> None:
    before = Snapshot.of([_node("a"), _node("b")])
    after = before.apply([_node("a", kernels=1)])
    assert after.columns.cpus_free is before.columns.cpus_free
    assert after.columns.kernels is not before.columns.kernels


def test_the_history_has_the_rows_that_really_changed() -> None:
    first = Snapshot.of([_node("a"), _node("b"), _node("c")])
    second = first.apply([_node("a"), _node("b", kernels=1)])
    assert second.history.rows_between(1, 2) == {1}
    history = second.apply([_node("d")], removed=["c", "never-there"]).history
    assert [change.rows for change in history.between(1, 3) or ()] == [(1,), (2,)]
    assert history.between(3, 3) == []
    assert history.rows_between(1, 3) is None  # the nodes have moved
    assert history.between(0, 3) is None
    assert history.between(4, 3) is None


def test_changes_are_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_REMEMBERED", 10)
    picture = Snapshot.of([_node("a")])
    for kernels in range(1, 301):
        picture = picture.apply([_node("a", kernels=kernels)])
        assert picture.history.rows_between(max(1, picture.version - 10), picture.version) == {0}
    assert picture.history.between(1, picture.version) is None
    assert picture.history.between(picture.version - 21, picture.version) is None


def test_older_by_changes_only_the_age_of_metrics() -> None:
    before = Snapshot.of([_node("a", metrics_age_s=1.0), _node("b")])
    after = before.older_by(5.0)
    assert (after.node("a").metrics_age_s, after.node("b").metrics_age_s) == (6.0, None)
    assert (after.version, before.node("a").metrics_age_s) == (1, 1.0)
    assert after.has_fresh_metrics(5.5).tolist() == [False, False]
    assert before.has_fresh_metrics(5.5).tolist() == [True, False]
    assert after.apply([_node("a", metrics_age_s=0.5)]).node("a").metrics_age_s == 0.5


def test_accepted_devices_leaves_out_padding_and_other_models() -> None:
    other = Node(id="b", devices=(Device(id="0", model="T4"), Device(id="1", model="A100")))
    snapshot = Snapshot.of([_node("a", gpus=1)]).apply([other])
    accepted = snapshot.accepted_devices(Request(gpus=1, gpu_models=("A100",)))
    assert accepted.tolist() == [[True, False], [False, True]]


def _of_three() -> Snapshot:
    nodes = [_node("a", gpus=2, labels={"zone": "1"}), _node("b", metrics_age_s=3.0), _node("c", gpus=1)]
    return Snapshot.of([replace(node, cpus_promised=place) for place, node in enumerate(nodes)])


class TestParts:
    def test_a_part_is_a_snapshot_of_these_rows_in_this_order(self) -> None:
        whole = _of_three()
        part = whole.part(np.array([2, 0]))
        assert (part.nodes, len(part), part.version, part.models) == (("c", "a"), 2, 1, whole.models)
        assert part.columns.cpus_free.tolist() == [2.0, 4.0]
        assert part.columns.device_free.tolist() == [[1.0, -np.inf], [1.0, 1.0]]
        assert (part.node("a"), part.at(0), part.row("a")) == (whole.node("a"), whole.node("c"), 1)
        assert ("a" in part, "b" in part) == (True, False)
        for outside in ("b", "nowhere"):
            with pytest.raises(KeyError, match=outside):
                part.node(outside)

    def test_a_part_of_a_part(self) -> None:
        part = _of_three().part(np.array([2, 1, 0])).part(np.array([1, 2]))
        assert part.nodes == ("b", "a")
        assert part.columns.cpus_free.tolist() == [3.0, 4.0]
        assert part.has_labels([("zone", "1")]).tolist() == [False, True]
        assert part.has_fresh_metrics(3.0).tolist() == [True, False]
        assert part.at(0).metrics_age_s == 3.0

    def test_a_part_of_an_older_snapshot_is_as_old(self) -> None:
        part = _of_three().older_by(4.0).part(np.array([1]))
        assert (part.at(0).metrics_age_s, part.has_fresh_metrics(5.0).tolist()) == (7.0, [False])

    def test_without_stale_metrics_only_use_is_forgotten(self) -> None:
        nodes = [
            _node("a", cpus_used=1, memory_used_bytes=1, metrics_age_s=31.0),
            _node("b", cpus_used=2, memory_used_bytes=2, metrics_age_s=30.0),
        ]
        nodes[0] = replace(nodes[0], devices=(Device(id="0", used=0.9), Device(id="1", used=0.0)))
        known = Snapshot.of(nodes).without_stale_metrics(30.0)
        assert np.isnan(known.columns.cpus_used).tolist() == [True, False]
        assert np.isnan(known.columns.memory_used_bytes).tolist() == [True, False]
        assert known.columns.device_excess[0].tolist() == [0.5, 0.5]
        assert known.columns.cpus_free.tolist() == [4.0, 4.0]
        fresh = Snapshot.of(nodes[1:])
        assert fresh.without_stale_metrics(30.0) is fresh


class TestMasks:
    def test_a_node_is_tested_again_only_if_its_traits_change(self) -> None:
        asked: list[str] = []

        def test(node: Node) -> bool:
            asked.append(node.id)
            return "spot" in node.taints

        first = Snapshot.of([_node("a"), _node("b", taints=("spot",)), _node("c")])
        assert first.mask("spot", test).tolist() == [False, True, False]
        second = first.apply([_node("a", kernels=3)])
        assert second.mask("spot", test).tolist() == [False, True, False]
        assert second.older_by(9.0).part(np.array([1])).mask("spot", test).tolist() == [True]
        assert asked == ["a", "b", "c"]
        third = second.apply([_node("a", kernels=3, taints=("spot",)), _node("c", kernels=1)])
        assert third.mask("spot", test).tolist() == [True, True, False]
        assert asked == ["a", "b", "c", "a"]
        assert (first.mask("spot", test).tolist(), third.version) == ([False, True, False], 3)

    def test_beyond_a_limit_masks_are_answered_but_not_kept(self) -> None:
        snapshot_ = Snapshot.of([_node("a", labels={"n": "299"})])
        for i in range(300):
            assert snapshot_.has_labels([("n", str(i))]).tolist() == [i == 299]
        changed = snapshot_.apply([_node("a", labels={"n": "3"})])
        assert changed.has_labels([("n", "3")]).tolist() == [True]
        assert changed.has_labels([("n", "299")]).tolist() == [False]


def test_branches_have_a_history_of_their_own() -> None:
    root = Snapshot.of([_node("a"), _node("b"), _node("c")])
    middle = root.apply([_node("a", kernels=1)])
    one = middle.apply([_node("b", kernels=1)])
    other = middle.apply([_node("c", kernels=1)])
    last = other.apply(removed=["b"])
    assert one.history.rows_between(root.version, one.version) == {0, 1}
    assert [change.rows for change in other.history.between(1, 3) or ()] == [(0,), (2,)]
    assert [change.rows for change in last.history.between(middle.version, last.version) or ()] == [(2,), ()]
    assert one.history is not other.history
    assert one.history is root.history


def test_a_saved_snapshot_is_read_back() -> None:
    before = _of_three().older_by(2.0)
    after = Snapshot.from_dict(
        json.loads(json.dumps({"nodes": [before.node(each).to_dict() for each in before.nodes]}))
    )
    assert [after.node(i) for i in after.nodes] == [before.node(i) for i in before.nodes]
    assert after.node("b").metrics_age_s == 5.0
    for wrong in ([], {"nodes": {}}, {"placements": []}, None):
        with pytest.raises(ValueError, match="a saved snapshot has a list of nodes"):
            Snapshot.from_dict(wrong)


def test_a_snapshot_takes_other_ages_of_the_metrics() -> None:
    one = Snapshot.of([Node(id="a", cpus=8, metrics_age_s=1.0), Node(id="b", cpus=8)])
    two = one.with_ages(np.array([4.0, np.nan]))
    assert [two.node(each).metrics_age_s for each in two.nodes] == [4.0, None]
    assert np.nan_to_num(two.columns.metrics_age_s).tolist() == [4.0, 0.0]
    assert two.has_fresh_metrics(3.0).tolist() == [False, False]
    assert one.has_fresh_metrics(3.0).tolist() == [True, False]
