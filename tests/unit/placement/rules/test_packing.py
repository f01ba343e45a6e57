"""The packing scorers, against their definitions in plain Python and against figures computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from roost.placement import Device, Node, Request, Snapshot, Workload
from roost.placement.rules.packing import (
    FragmentationGradient,
    Leftover,
    ModelPressure,
    SliverWaste,
    StrandedShare,
)

MIB = 2**20
SHARES = Request(cpus=1, gpus=0.5)
WHOLE = Request(cpus=1, gpus=1)


def _seen(*counted: tuple[int, Request], **gpus: float) -> Workload:
    return Workload.of([request for count, request in counted for _ in range(count)], gpus)


def _node(name: str, *free: float, model: str = "A100", cpus: float = 64.0) -> Node:
    devices = tuple(Device(id=str(i), model=model, promised=round(1 - f, 6)) for i, f in enumerate(free))
    return Node(id=name, cpus=cpus, devices=devices)


def _scores(scorer: Any, request: Request, *nodes: Node) -> Any:
    scores = scorer.score(request, Snapshot.of(nodes))
    assert scores.shape[0] == len(nodes)
    return scores


def _fragmentation(node: Node, workload: Workload) -> float:
    """Return F of Weng et al., section 4.2: the free GPUs that a class of requests cannot use, as a mean over classes.

    A class that does not fit the node or needs no GPU can use none of them. Any other class cannot use a device with
    less free than the class needs.
    """
    total, requests = 0.0, sum(count for _, count in workload.classes)
    for asked, count in workload.classes:
        share = min(asked.gpus, 1.0)
        usable = [d.free for d in node.devices if asked.accepts_model(d.model) and d.free >= share - 1e-9]
        can_run = asked.gpus > 0 and math.ceil(asked.gpus) <= len(usable) and asked.cpus <= node.cpus_free
        left = sum(d.free for d in node.devices)
        total += count / requests * (left - sum(usable) if can_run else left)
    return total


class TestFragmentationGradient:
    WORKLOAD = _seen(
        (6, Request(cpus=2)),
        (30, Request(cpus=4, gpus=0.25)),
        (20, Request(cpus=1, gpus=0.6)),
        (20, Request(cpus=8, gpus=1)),
        (10, Request(cpus=6, gpus=1, gpu_models=("A100",))),
        (8, Request(cpus=12, gpus=2)),
        (6, Request(cpus=24, gpus=4)),
    )
    """Requests for GPU shares, whole GPUs, several GPUs and CPUs only. No class is so rare that roost leaves it out."""

    NODES = (
        _node("a", 1, 1, 1, 1),
        _node("b", 1, 0.7, 0.3, 0, cpus=10),
        _node("c", 0.6, 0.5, cpus=4.5),
        _node("d", 1, 1, model="T4", cpus=24),
        _node("e", 1, 1, 1, 1, 1, 1, 1, 1, cpus=96),
        _node("f", 1, 1, 0.25, cpus=13),
    )

    def test_all_classes_of_the_workload_are_typical(self) -> None:
        assert len(self.WORKLOAD.fragments(("A100",)).cpus) == len(self.WORKLOAD.classes) == 7

    @pytest.mark.parametrize("cpus", [0.0, 1.0, 4.0])
    @pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.6])
    def test_shares_are_scored_per_device(self, share: float, cpus: float) -> None:
        request = Request(gpus=share, cpus=cpus)
        scores = _scores(FragmentationGradient(self.WORKLOAD), request, *self.NODES)
        assert scores.shape == (6, 8)
        for row, node in enumerate(self.NODES):
            before = _fragmentation(node, self.WORKLOAD)
            for place, device in enumerate(node.devices):
                if device.free >= share:
                    after = _fragmentation(node.with_kernel(request, [device.id]), self.WORKLOAD)
                    assert scores[row, place] == pytest.approx(before - after, abs=1e-9)

    @pytest.mark.parametrize("cpus", [0.0, 4.0])
    @pytest.mark.parametrize("gpus", [0, 1, 2, 4])
    def test_whole_gpus_are_scored_per_device_and_cpus_alone_per_node(self, gpus: int, cpus: float) -> None:
        request = Request(gpus=gpus, cpus=cpus)
        scores = _scores(FragmentationGradient(self.WORKLOAD), request, *self.NODES)
        assert scores.shape == ((6, 8) if gpus else (6,))
        rated = 0
        for row, node in enumerate(self.NODES):
            fitting = node.fitting_devices(request) if gpus else ()
            if len(fitting) >= gpus:
                after = node.with_kernel(request, [device.id for device in fitting[:gpus]])
                gain = _fragmentation(node, self.WORKLOAD) - _fragmentation(after, self.WORKLOAD)
                places = [int(device.id) for device in fitting]
                of_each = scores[row, places] if gpus else scores[row]
                assert of_each == pytest.approx(gain, abs=1e-9)
                rated += 1
        assert rated == {0: 6, 1: 5, 2: 4, 4: 2}[gpus]

    @pytest.mark.parametrize("gpus", [0.3, 1.0])
    def test_devices_of_several_models_on_one_node(self, gpus: float) -> None:
        workload = _seen((3, Request(gpus=0.5, gpu_models=("A100",))), (2, Request(gpus=0.3)))
        models = ("T4", "A100", "A100")
        devices = tuple(
            Device(id=str(i), model=model, promised=promised)
            for i, (model, promised) in enumerate(zip(models, (0, 0, 0.4), strict=True))
        )
        node, request = Node(id="a", devices=devices), Request(gpus=gpus)
        scores = _scores(FragmentationGradient(workload), request, node)[0]
        fitting = [device.id for device in node.fitting_devices(request)]
        gains = [
            _fragmentation(node, workload) - _fragmentation(node.with_kernel(request, [i]), workload)
            for i in fitting
        ]
        assert [scores[int(i)] for i in fitting] == pytest.approx(gains)
        assert len(set(gains)) == len(fitting) > 1

    def test_by_hand(self) -> None:
        # Half of the requests need half a GPU, the others a whole GPU. Half a GPU taken from a whole one leaves 0.5,
        # which every second request cannot use: F grows from 0 to 0.25. With the other half taken, F is 0 again.
        workload = _seen((10, SHARES), (10, WHOLE))
        scores = _scores(FragmentationGradient(workload), SHARES, _node("a", 1, 0.5), _node("b"))
        assert scores[0].tolist() == pytest.approx([-0.25, 0.25])
        # as published: 100 / (1 + e^0.25) = 43.8 and 100 / (1 + e^-0.25) = 56.2, cut to whole numbers
        published = _scores(
            FragmentationGradient(workload, is_integer=True), SHARES, _node("a", 1, 0.5), _node("b")
        )
        assert published[0].tolist() == pytest.approx([0.43, 0.56])

    def test_cpus_taken_strand_gpus(self) -> None:
        # 1 CPU stays, and requests need 4 CPUs: no request can use the free GPU
        workload = _seen((10, Request(cpus=4, gpus=1)))
        scores = _scores(
            FragmentationGradient(workload), Request(cpus=4), _node("a", 1, cpus=5), _node("b", 1, cpus=8)
        )
        assert scores.tolist() == pytest.approx([-1.0, 0.0])

    def test_no_workload_and_no_devices(self) -> None:
        for scorer in (FragmentationGradient(Workload()), FragmentationGradient(self.WORKLOAD)):
            assert _scores(scorer, Request(cpus=1), _node("a")).tolist() == [0.0]


class TestStrandedShare:
    def test_by_hand(self) -> None:
        # 4 CPUs for each GPU. 8 CPUs serve 2 of 4 GPUs: 2 are stranded.
        scorer = StrandedShare(_seen((3, Request(cpus=4, gpus=1)), (2, Request(cpus=2, gpus=0.5))))
        node = _node("a", 1, 1, 1, 1, cpus=8)
        assert _scores(scorer, Request(cpus=4, gpus=1), node).tolist() == pytest.approx([0.0])  # 3 − 4/4
        assert _scores(scorer, Request(cpus=8, gpus=1), node).tolist() == pytest.approx([-1.0])  # 3 − 0
        assert _scores(scorer, Request(cpus=4), node).tolist() == pytest.approx([-1.0])  # 4 − 4/4
        assert _scores(scorer, Request(gpus=1), node).tolist() == pytest.approx([1.0])  # 3 − 8/4
        assert _scores(scorer, Request(cpus=4), _node("b", 1, cpus=64)).tolist() == [0.0]  # enough for all

    def test_memory_strands_gpus_like_cpus(self) -> None:
        scorer = StrandedShare(_seen((3, Request(cpus=1, gpus=1, memory_bytes=100))))
        node = replace(_node("a", 1, 1, 1), memory_bytes=200)
        # 1 of 3 GPUs is stranded; 100 bytes taken without a GPU strand another one
        assert _scores(scorer, Request(gpus=1, memory_bytes=100), node).tolist() == pytest.approx([0.0])
        assert _scores(scorer, Request(memory_bytes=100), node).tolist() == pytest.approx([-1.0])

    @pytest.mark.parametrize("gpus", [0.0, 0.3, 1.0, 2.0])
    @pytest.mark.parametrize("cpus", [0.0, 1.5, 6.0])
    def test_against_its_definition(self, gpus: float, cpus: float) -> None:
        # count, then CPUs, MiB and GPUs of a request; all classes are typical
        counted = [
            (5, 8.0, 64, 1.0),
            (2, 3.0, 0, 0.5),
            (7, 1.0, 8, 0.25),
            (3, 24.0, 20, 2.0),
            (4, 2.0, 50, 1.0),
        ]
        seen = [(n, Request(cpus=c, memory_bytes=m * MIB, gpus=g)) for n, c, m, g in counted]
        request = Request(cpus=cpus, gpus=gpus, memory_bytes=16 * MIB)

        def stranded(gpus_left: float, cpus_left: float, bytes_left: float) -> float:
            served = [
                (n, g, min(cpus_left / c, bytes_left / (m * MIB) if m else math.inf) * g)
                for n, c, m, g in counted
            ]
            asked = sum(n * g for n, _, _, g in counted)
            return sum(n * g * max(0.0, gpus_left - most) for n, g, most in served) / asked

        shapes = [
            ("a", (1, 1, 1), 7, 500),
            ("b", (1, 1, 0.3), 30, 90),
            ("c", (1, 1), 6, 16),
            ("d", (), 64, 64),
        ]
        nodes = [replace(_node(name, *free, cpus=c), memory_bytes=m * MIB) for name, free, c, m in shapes]
        scores = _scores(StrandedShare(_seen(*seen, (9, Request(cpus=64)))), request, *nodes)
        for score, node in zip(scores, nodes, strict=True):
            if node.gpus_free >= gpus:
                before = stranded(node.gpus_free, node.cpus_free, node.memory_bytes)
                after = stranded(node.gpus_free - gpus, node.cpus_free - cpus, node.memory_bytes - 16 * MIB)
                assert score == pytest.approx(before - after, abs=1e-6)

    def test_no_opinion_if_no_request_needs_gpus(self) -> None:
        scorer = StrandedShare(_seen((9, Request(cpus=4))))
        assert scorer.score(Request(gpus=1), Snapshot.of([_node("a", 1)])) is None

    def test_requests_without_cpus_strand_nothing(self) -> None:
        scorer = StrandedShare(_seen((9, Request(gpus=1))))
        assert _scores(scorer, Request(cpus=4, gpus=1), _node("a", 1, cpus=4), _node("b", 1)).tolist() == [
            0.0,
            0.0,
        ]


def test_leftover_weighs_cpus_and_gpus_by_the_largest_node() -> None:
    # 64 of 128 CPUs and 2 of 8 GPUs are left: 0.5 and 0.25
    nodes = [_node("a", 1, 1, 1, cpus=65), _node("b", 1, cpus=1), _node("c", 1, 0.999, cpus=2)]
    request = Request(cpus=1, gpus=1)
    scores = _scores(Leftover(), request, *nodes)
    assert scores.tolist() == pytest.approx([-0.375, 0.0, -(1 / 128 + 0.999 / 8) / 2])
    assert _scores(Leftover(is_integer=True), request, *nodes).tolist() == pytest.approx([0.62, 1.0, 0.93])


class TestSliverWaste:
    def test_the_growth_of_the_unused_share(self) -> None:
        # for requests of 0.4, waste is 0.2 of a whole GPU, 0.1 of 0.9, 0 of 0.8, 0.2 of 0.6, 0.1 of 0.5, 0.3 of 0.3
        scorer = SliverWaste(_seen((5, Request(gpus=0.4))))
        free = (1, 0.9, 0.8, 0.5, 0.4)
        assert _scores(scorer, Request(gpus=0.4), _node("a", *free))[0] == pytest.approx([0.0] * 5)
        assert _scores(scorer, Request(gpus=0.5), _node("a", 1, 0.9, 0.8, 0.5))[0] == pytest.approx(
            [0.2 - 0.1, 0.1 - 0.0, 0.0 - 0.3, 0.1 - 0.0]
        )

    def test_only_for_shares(self) -> None:
        scorer = SliverWaste(_seen((5, Request(gpus=0.4))))
        for request in (Request(cpus=1), Request(gpus=1), Request(gpus=2)):
            assert scorer.score(request, Snapshot.of([_node("a", 1, 1)])) is None


class TestModelPressure:
    WORKLOAD = _seen((10, Request(gpus=1, gpu_models=("A100",))), (10, Request(gpus=1)), A100=5, T4=15)
    """Half of the demand requires an A100, and a quarter of the GPUs are A100: the pressure is 2² = 4."""

    def test_takes_scarce_models_last(self) -> None:
        scores = _scores(
            ModelPressure(self.WORKLOAD), Request(gpus=0.5), _node("a", 1, 1), _node("b", 1, model="T4")
        )
        assert scores[0].tolist() == [-2.0, -2.0]
        assert scores[1].tolist() == [0.0, 0.0]  # the second is no device
        assert _scores(ModelPressure(self.WORKLOAD), Request(gpus=2), _node("a", 1, 1)).tolist() == [
            [-8.0, -8.0]
        ]

    def test_no_opinion_without_gpus_or_pressure(self) -> None:
        snapshot = Snapshot.of([_node("a", 1)])
        assert ModelPressure(self.WORKLOAD).score(Request(cpus=1), snapshot) is None
        assert ModelPressure(_seen((9, WHOLE), A100=8)).score(WHOLE, snapshot) is None


@pytest.mark.parametrize(
    "scorer",
    [
        FragmentationGradient(TestFragmentationGradient.WORKLOAD),
        FragmentationGradient(TestFragmentationGradient.WORKLOAD, is_integer=True),
        StrandedShare(TestFragmentationGradient.WORKLOAD),
        Leftover(),
        SliverWaste(TestFragmentationGradient.WORKLOAD),
        ModelPressure(TestModelPressure.WORKLOAD),
    ],
    ids=lambda scorer: scorer.name,
)
@pytest.mark.parametrize("request_", [SHARES, WHOLE, Request(gpus=2), Request(cpus=2)])
def test_each_node_is_scored_for_itself(scorer: Any, request_: Request) -> None:
    """A node's score is the same in the whole snapshot and in a part of the snapshot in another order."""
    snapshot = Snapshot.of(TestFragmentationGradient.NODES)
    rows = np.array([4, 1])
    whole, part = (scorer.score(request_, s) for s in (snapshot, snapshot.part(rows)))
    assert (whole is None) == (part is None)
    if whole is not None:
        assert np.array_equal(whole[rows], part)
        assert not scorer.needs_metrics
