"""The shortcuts of filters and scorers lead to the same decisions as `passes` and `score`."""

from __future__ import annotations

from typing import Any

import numpy as np

from roost.placement import Device, Node, Pipeline, Request, Snapshot
from roost.placement.pipeline import DEFAULT_FILTERS
from roost.placement.rules.filters import HasLabels, HasMemory
from roost.placement.rules.scorers import Near
from roost.placement.tables.snapshot import BoolArray, FloatArray

PIB = 2**50
NODES = Snapshot.of(
    Node(
        id=name,
        cpus=8,
        memory_bytes=100,
        devices=(Device(id="0", model="A100"), Device(id="1", model="T4", promised=promised)),
    )
    for name, promised in (("a", 0.0), ("b", 0.5), ("c", 1.0))
)


def _places(request: Request, *filters: Any, scorers: Any = (), snapshot: Snapshot = NODES) -> list[str]:
    decision = Pipeline(name="mine", filters=filters, scorers=scorers).place(request, snapshot)
    ranked = ([decision.placement] if decision.placement else []) + list(decision.runners_up)
    return [placement.node_id for placement in ranked]


class RoomTwice(HasMemory):
    """A filter that needs more memory than `least` of its base class says."""

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        return snapshot.columns.memory_free_bytes >= 2 * request.memory_bytes + 1


class NeverA(HasLabels):
    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        return np.array([name != "a" for name in snapshot.nodes])


class LastFirst(Near):
    def score(self, request: Request, snapshot: Snapshot) -> FloatArray:
        return np.array([float(ord(name)) for name in snapshot.nodes])


def test_a_subclass_is_called_even_if_its_base_class_does_not_apply() -> None:
    assert _places(Request(memory_bytes=49), RoomTwice()) == ["a", "b", "c"]
    assert _places(Request(memory_bytes=50), RoomTwice()) == []
    assert _places(Request(), NeverA()) == ["b", "c"]
    assert _places(Request(), scorers=((LastFirst(), 1.0),)) == ["c", "b", "a"]


def test_models_memory_and_cpus_can_be_asked_for_together() -> None:
    sizes = {"a": 24, "b": 40}
    nodes = [
        Node(id=name, cpus=2, devices=tuple(Device(id=i, model="T4", memory_bytes=size) for i in "01"))
        for name, size in sizes.items()
    ]
    request = Request(cpus=1, gpus=1, gpu_models=("T4",), gpu_memory_bytes=40)
    assert _places(request, *DEFAULT_FILTERS, snapshot=Snapshot.of(nodes)) == ["b"]


def test_bytes_are_exact_beyond_what_floats_hold() -> None:
    nodes = Snapshot.of([Node(id="a", memory_bytes=16 * PIB)])
    assert _places(Request(memory_bytes=16 * PIB), *DEFAULT_FILTERS, snapshot=nodes) == ["a"]
    assert _places(Request(memory_bytes=16 * PIB + 1), *DEFAULT_FILTERS, snapshot=nodes) == []
