"""The score cache scores only changed nodes again, with the same result as scoring all nodes."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import cloudpickle
import pytest

from roost.placement import Node, Pipeline, Request, Snapshot, get_policy
from roost.placement.engine import score_cache
from roost.placement.engine.score_cache import ScoreCache, Scores
from roost.testing.deadlines import allow_s


class Counting:
    """A function that scores a node by its kernels and records the nodes that it has scored."""

    def __init__(self, uses_metrics: bool = False) -> None:
        self.uses_metrics = uses_metrics
        self.asked: list[tuple[str, ...]] = []
        self.fails = False

    def __call__(self, snapshot: Snapshot) -> Scores:
        if self.fails:
            raise ZeroDivisionError
        self.asked.append(tuple(sorted(snapshot.nodes)))
        kernels = snapshot.columns.kernels
        return Scores(kernels.astype(float), kernels % 2, self.uses_metrics)


class Watched:
    """A `ScoreCache` with a counting function."""

    def __init__(self, max_bytes: int = 1 << 20, uses_metrics: bool = False) -> None:
        self.cache, self.rate = ScoreCache(max_bytes), Counting(uses_metrics)

    def __call__(self, snapshot: Snapshot, key: Any = "class", stale_after_s: float = 30.0) -> list[float]:
        found = self.cache.update(key, snapshot, snapshot.has_fresh_metrics(stale_after_s), lambda: self.rate)
        assert found.devices.tolist() == [kernels % 2 for kernels in found.totals]
        assert found.totals.tolist() == snapshot.columns.kernels.tolist()
        return found.totals.tolist()

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """Return the ids of the nodes that each call since the last read has scored."""
        asked, self.rate.asked = self.rate.asked, []
        return asked


def _node(name: str, kernels: int = 0, age_s: float | None = None) -> Node:
    return Node(id=name, kernels=kernels, metrics_age_s=age_s)


def _nodes(names: str) -> Snapshot:
    return Snapshot.of(_node(name, place) for place, name in enumerate(names))


def test_no_node_is_scored_twice() -> None:
    scores, snapshot = Watched(), _nodes("abc")
    assert scores(snapshot) == scores(snapshot) == [0, 1, 2]
    assert scores.asked == [("a", "b", "c")]


def test_only_changed_nodes_are_scored_again() -> None:
    scores, snapshot = Watched(), _nodes("abc")
    scores(snapshot)
    second = snapshot.apply([_node("b", 7)])
    third = second.apply([_node("a", 5)])
    assert scores(third) == [5, 7, 2]
    assert scores.asked == [("a", "b", "c"), ("a", "b")]


def test_a_node_that_becomes_stale_is_scored_again() -> None:
    scores = Watched(uses_metrics=True)
    snapshot = Snapshot.of([_node("a", age_s=0.0), _node("b", age_s=20.0), _node("c")])
    scores(snapshot)
    scores(snapshot.older_by(5.0))
    scores(snapshot.older_by(15.0))
    scores(snapshot.older_by(40.0))
    scores(snapshot)
    assert scores.asked == [("a", "b", "c"), ("b",), ("a",), ("a", "b")]


def test_freshness_does_not_matter_without_metrics() -> None:
    scores, snapshot = Watched(), Snapshot.of([_node("a", age_s=0.0)])
    scores(snapshot)
    scores(snapshot.older_by(99.0))
    assert scores.asked == [("a",)]


TWO_CLASSES = 2 * 4 * 10
"""The bytes of two classes of four nodes: 8 of score and 2 of device each."""


@pytest.mark.parametrize(("max_bytes", "most_classes"), [(TWO_CLASSES, 1_000), (1 << 20, 2)])
def test_the_least_recently_used_class_goes_first(
    max_bytes: int, most_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_cache, "_MOST_CLASSES", most_classes)
    snapshot = _nodes("abcd")
    scores = Watched(max_bytes=max_bytes)
    for key in "xyxz":
        scores(snapshot, key)
    assert len(scores.asked) == 3
    scores(snapshot, "x")
    scores(snapshot, "z")
    assert scores.asked == []
    scores(snapshot, "y")
    assert len(scores.asked) == 1


def test_one_class_is_kept_however_large() -> None:
    scores, snapshot = Watched(max_bytes=1), _nodes("abcd")
    scores(snapshot)
    scores(snapshot)
    assert len(scores.asked) == 1


def test_an_error_leaves_no_partial_scores() -> None:
    scores, snapshot = Watched(), _nodes("ab")
    scores(snapshot)
    changed = snapshot.apply([_node("b", 7)])

    scores.rate.fails = True
    with pytest.raises(ZeroDivisionError):
        scores(changed)
    scores.rate.fails = False
    assert scores(changed) == [0, 7]


def test_each_policy_has_its_own_cache_which_is_no_part_of_its_value() -> None:
    one = get_policy("balanced")
    assert isinstance(one, Pipeline)
    for other in (replace(one), replace(one, filters=())):
        assert other.cache is not one.cache
    assert replace(one) == one


def test_a_pickled_policy_leaves_its_cache_behind() -> None:
    mine, snapshot = get_policy("pack"), Snapshot.of(Node(id=f"{i:05}", cpus=4) for i in range(2000))
    before = len(cloudpickle.dumps(mine))
    expected = mine.place(Request(cpus=1), snapshot)
    assert len(cloudpickle.dumps(mine)) == before
    assert cloudpickle.loads(cloudpickle.dumps(mine)).place(Request(cpus=1), snapshot) == expected


def test_several_threads_may_use_one_policy() -> None:
    mine, wrong = get_policy("balanced"), []
    requests = [Request(cpus=1), Request(memory_bytes=1), Request()]
    start = Snapshot.of(Node(id=name, cpus=8, memory_bytes=8) for name in "abcdef")

    def ask(first: int) -> None:
        snapshot = start
        for turn in range(60):
            request = requests[(first + turn) % 3]
            decision = mine.place(request, snapshot)
            if decision.placement is None or decision != get_policy("balanced").place(request, snapshot):
                wrong.append(decision)
                return
            held = snapshot.node(decision.placement.node_id).with_kernel(Request())
            snapshot = snapshot.apply([held])

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=allow_s(60))
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
