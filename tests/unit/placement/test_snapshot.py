"""Snapshots: versions, copies on write, and columns that agree with the nodes."""

from __future__ import annotations

import numpy as np
import pytest

from roost.placement import Columns, Device, Node, Request, Snapshot, snapshot
from roost.placement.columns import COLUMNS


def _node(name: str, gpus: int = 0, **values: object) -> Node:
    devices = tuple(Device(id=str(i), model="A100") for i in range(gpus))
    return Node(id=name, cpus=4, memory_bytes=2**33, devices=devices, **values)  # type: ignore[arg-type]


def _same(one: Columns, other: Columns) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in COLUMNS)


def test_rows_follow_ids_whatever_the_order_given() -> None:
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
def test_applying_is_the_same_as_starting_over(upserts: list[Node], removed: list[str]) -> None:
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


def test_changed_since_names_what_really_changed() -> None:
    first = Snapshot.of([_node("a"), _node("b"), _node("c")])
    second = first.apply([_node("a"), _node("b", kernels=1)])
    third = second.apply([_node("d")], removed=["c", "never-there"])
    assert third.changed_since(3) == frozenset()
    assert third.changed_since(2) == frozenset({"c", "d"})
    assert third.changed_since(1) == frozenset({"b", "c", "d"})
    assert third.changed_since(0) is None
    assert third.changed_since(4) is None


def test_changes_are_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_REMEMBERED", 10)
    picture = Snapshot.of([_node("a")])
    for kernels in range(1, 301):
        picture = picture.apply([_node("a", kernels=kernels)])
        assert picture.changed_since(max(1, picture.version - 10)) == frozenset({"a"})
    assert picture.changed_since(1) is None
    assert picture.changed_since(picture.version - 21) is None


def test_aged_makes_metrics_older_and_changes_nothing_else() -> None:
    before = Snapshot.of([_node("a", metrics_age_s=1.0), _node("b")])
    after = before.aged(5.0)
    assert (after.node("a").metrics_age_s, after.node("b").metrics_age_s) == (6.0, None)
    assert (after.version, before.node("a").metrics_age_s) == (1, 1.0)
    assert after.has_fresh_metrics(5.5).tolist() == [False, False]
    assert before.has_fresh_metrics(5.5).tolist() == [True, False]
    assert after.apply([_node("a", metrics_age_s=0.5)]).node("a").metrics_age_s == 0.5


def test_labels_are_looked_up_again_when_they_change() -> None:
    first = Snapshot.of([_node("a", labels={"zone": "1"}), _node("b")])
    zone = {"zone": "1"}.items()
    assert first.has_labels(zone).tolist() == [True, False]
    assert first.apply([_node("b", kernels=1)]).has_labels(zone).tolist() == [True, False]
    assert first.apply([_node("b", labels={"zone": "1"})]).has_labels(zone).tolist() == [True, True]
    assert first.apply([_node("0")]).has_labels(zone).tolist() == [False, True, False]


def test_accepted_devices_leaves_out_padding_and_other_models() -> None:
    other = Node(id="b", devices=(Device(id="0", model="T4"), Device(id="1", model="A100")))
    snapshot = Snapshot.of([_node("a", gpus=1)]).apply([other])
    accepted = snapshot.accepted_devices(Request(gpus=1, gpu_models=("A100",)))
    assert accepted.tolist() == [[True, False], [False, True]]
