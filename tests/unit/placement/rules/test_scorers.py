"""The scorers of free resources, real use, warm environments and preferred labels, on a few nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from roost.placement import Device, Node, Request, Snapshot
from roost.placement.rules.scorers import (
    Available,
    FewKernels,
    FullestDevice,
    LowLoad,
    Near,
    NotBusy,
    SpareGpus,
    WarmEnvironment,
)

GPU = Request(gpus=0.5)


def _score(scorer: Any, request: Request, *nodes: Node) -> Any:
    scores = scorer.score(request, Snapshot.of(nodes))
    return None if scores is None else scores.tolist()


class TestWarmEnvironment:
    NODES = (Node(id="a"), Node(id="b", warm=("/opt/py", "/opt/r")), Node(id="c", warm=("/opt/p",)))

    def test_nodes_with_the_environment_score_1(self) -> None:
        assert _score(WarmEnvironment(), Request(environment="/opt/py"), *self.NODES) == [0.0, 1.0, 0.0]
        assert _score(WarmEnvironment(), Request(environment="/opt/other"), *self.NODES) == [0.0, 0.0, 0.0]

    def test_no_opinion_without_an_environment(self) -> None:
        assert _score(WarmEnvironment(), Request(), *self.NODES) is None

    def test_environments_that_become_warm_or_cold(self) -> None:
        snapshot, request = Snapshot.of(self.NODES), Request(environment="/opt/py")
        assert list(WarmEnvironment().score(request, snapshot)) == [0.0, 1.0, 0.0]  # type: ignore[arg-type]
        after = snapshot.apply([Node(id="a", warm=("/opt/py",)), Node(id="b")])
        assert list(WarmEnvironment().score(request, after)) == [1.0, 0.0, 0.0]  # type: ignore[arg-type]
        assert list(WarmEnvironment().score(request, after.part(np.array([2, 0])))) == [0.0, 1.0]  # type: ignore[arg-type]


class TestNear:
    NODES = (
        Node(id="a", labels={"zone": "1", "rack": "7"}),
        Node(id="b", labels={"zone": "1", "rack": "8"}),
        Node(id="c", labels={"zone": "2"}),
    )

    def test_the_share_of_the_preferred_labels(self) -> None:
        assert _score(Near(), Request(near={"zone": "1", "rack": "7"}), *self.NODES) == [1.0, 0.5, 0.0]
        assert _score(Near(), Request(near={"zone": "2"}), *self.NODES) == [0.0, 0.0, 1.0]

    def test_no_opinion_without_preferred_labels(self) -> None:
        assert _score(Near(), Request(labels={"zone": "1"}), *self.NODES) is None


def test_available_is_the_share_that_stays_free() -> None:
    node = Node(
        id="a",
        cpus=8,
        cpus_promised=2,
        memory_bytes=1000,
        memory_promised_bytes=500,
        devices=(Device(id="0"), Device(id="1", promised=0.5)),
        cpus_used=5,
        memory_used_bytes=300,
        metrics_age_s=1,
    )
    request = Request(cpus=1, memory_bytes=100, gpus=0.5)
    assert _score(Available("cpu"), request, node) == [5 / 8]
    assert _score(Available("cpu", real=True), request, node) == [2 / 8]  # 3 are idle
    assert _score(Available("memory"), request, node) == [0.4]
    assert _score(Available("memory", real=True), request, node) == [0.4]  # less is used than promised
    assert _score(Available("gpu"), request, node) == [0.5]
    assert _score(Available("cpu", real=True), Request(cpus=1), Node(id="b", cpus=8)) == [
        3 / 8
    ]  # unknown: half


@pytest.mark.parametrize("resource", ["gpu", "memory", "cpu"])
def test_available_has_an_opinion_on_requested_resources(resource: Any) -> None:
    asked = {"gpu": GPU, "memory": Request(memory_bytes=1), "cpu": Request(cpus=1)}
    for name, request in asked.items():
        for real in (False, True):
            said = _score(Available(resource, real=real), request, Node(id="a"))
            assert (said is not None) == (name == resource)
            assert Available(resource, real=real).needs_metrics is real
    best_effort = _score(Available(resource), Request(), Node(id="a", cpus=1, memory_bytes=1))
    assert best_effort == (None if resource == "gpu" else [1.0])
    assert _score(Available(resource, real=True), Request(), Node(id="a")) is None


def test_not_busy_is_per_device() -> None:
    devices = (Device(id="0", promised=0.5, used=0.9), Device(id="1", used=0.05), Device(id="2"))
    assert _score(NotBusy(), GPU, Node(id="a", devices=devices))[0] == pytest.approx([0.6, 1.0, 0.5])
    assert _score(NotBusy(), Request(cpus=1), Node(id="a", devices=devices)) is None


def test_requests_without_gpus_spare_gpu_nodes() -> None:
    nodes = Node(id="a", devices=(Device(id="0"),)), Node(id="b")
    assert _score(SpareGpus(), Request(cpus=1), *nodes) == [0.0, 1.0]
    assert _score(SpareGpus(), GPU, *nodes) is None


def test_fullest_and_emptiest_device() -> None:
    node = Node(id="a", devices=(Device(id="0"), Device(id="1", promised=0.25), Device(id="2", promised=0.5)))
    assert _score(FullestDevice(), GPU, node) == [[0.5, 0.75, 1.0]]
    assert _score(FullestDevice(is_emptiest=True), GPU, node) == [[0.5, 0.25, 0.0]]
    assert _score(FullestDevice(), Request(gpus=1), node) is None


def test_low_load_is_the_scarcer_of_cpus_and_memory() -> None:
    busy = Node(id="a", cpus=4, memory_bytes=100, cpus_used=1, memory_used_bytes=50, metrics_age_s=1)
    assert _score(LowLoad(), Request(), busy, Node(id="b", cpus=4, memory_bytes=9)) == [0.5, 0.5]
    assert _score(LowLoad(), Request(cpus=1), busy) is None


def test_few_kernels_counts_the_new_kernel_and_divides_by_size() -> None:
    nodes = (
        Node(id="a", cpus=4, kernels=1, devices=(Device(id="0"),)),
        Node(id="b", cpus=8, kernels=1, devices=(Device(id="0"), Device(id="1"))),
    )
    assert _score(FewKernels(), Request(), *nodes) == [-0.5, -0.25]
    assert _score(FewKernels(), GPU, *nodes) == [-2.0, -1.0]
    assert _score(FewKernels(best_effort_only=True), GPU, *nodes) is None
    assert np.isfinite(_score(FewKernels(), Request(), Node(id="a"))).all()  # no CPUs known
