"""Values that are worked out when they are read: once, and like the plain ones that they stand for."""

from __future__ import annotations

import pickle

import pytest

from roost.placement import Node, Placement, Request, Snapshot, get_policy
from roost.placement.lazy import LaterMapping, LaterSequence


def test_a_sequence_is_made_once_when_first_read() -> None:
    made: list[int] = []

    def make() -> list[str]:
        made.append(1)
        return ["a", "b", "c"]

    later = LaterSequence(make)
    assert made == []
    assert later[0] == "a"
    assert (len(later), list(later), later[1:], later[-1]) == (3, ["a", "b", "c"], ("b", "c"), "c")
    assert "b" in later
    assert repr(later) == "('a', 'b', 'c')"
    assert made == [1]


def test_a_sequence_equals_the_tuple_it_stands_for() -> None:
    later = LaterSequence(lambda: [1, 2])
    assert later == (1, 2)
    assert (1, 2) == later  # noqa: SIM300 - the other way round is another method
    assert later == LaterSequence(lambda: (1, 2))
    assert later != (1, 3)
    assert later != 12
    assert hash(later) == hash((1, 2))
    assert not LaterSequence(list)


def test_a_mapping_equals_the_dict_it_stands_for() -> None:
    made: list[int] = []

    def make() -> dict[str, float]:
        made.append(1)
        return {"gpu": 0.5, "cpu": 1.0}

    later = LaterMapping(make)
    assert made == []
    assert later == {"gpu": 0.5, "cpu": 1.0}
    assert {"gpu": 0.5, "cpu": 1.0} == later  # noqa: SIM300 - the other way round is another method
    assert (later["cpu"], list(later), len(later), repr(later)) == (
        1.0,
        ["gpu", "cpu"],
        2,
        "{'gpu': 0.5, 'cpu': 1.0}",
    )
    with pytest.raises(KeyError):
        later["memory"]
    assert made == [1]


def test_they_are_pickled_as_what_they_stand_for() -> None:
    sequence = pickle.loads(pickle.dumps(LaterSequence(lambda: [1, 2])))
    mapping = pickle.loads(pickle.dumps(LaterMapping(lambda: {"gpu": 1.0})))
    assert (sequence, type(sequence)) == ((1, 2), tuple)
    assert (mapping, type(mapping)) == ({"gpu": 1.0}, dict)


def test_what_fails_is_tried_again() -> None:
    answers = iter([ZeroDivisionError(), ["a"]])

    def make() -> list[str]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    later = LaterSequence(make)
    with pytest.raises(ZeroDivisionError):
        len(later)
    assert list(later) == ["a"]


def test_a_decision_works_out_its_grounds_only_when_read() -> None:
    decision = get_policy("round_robin").place(
        Request(cpus=1), Snapshot.of([Node(id="a", cpus=1), Node(id="b")])
    )
    assert isinstance(decision.refusals, LaterSequence)
    assert decision.placement is not None
    assert isinstance(decision.placement.terms, LaterMapping)
    plain = pickle.loads(pickle.dumps(decision))
    assert plain == decision
    assert type(plain.refusals) is tuple
    assert plain.placement == Placement(node_id="a", score=-1.0, terms={"kernels": -1.0})
