"""The reasons of each filter. That just the nodes that fit pass all of them is tested in `tests/property`."""

from __future__ import annotations

import numpy as np
import pytest

from roost.placement import Device, Node, Request, Snapshot
from roost.placement.rules.filters import (
    Filter,
    HasCpus,
    HasGpus,
    HasLabels,
    HasMemory,
    HasResources,
    NotDraining,
    Tolerates,
)

GIB = 2**30


def _sizes(*gib: int, promised: float = 0.0) -> Node:
    """Return a node whose GPUs have these memory sizes in GiB; 0 means unknown."""
    devices = (Device(id=str(i), memory_bytes=size * GIB, promised=promised) for i, size in enumerate(gib))
    return Node(id="a", devices=tuple(devices))


BIG = Request(gpus=1, gpu_memory_bytes=40 * GIB)


def _gpus(*promised: float, model: str = "A100", **values: object) -> Node:
    devices = tuple(Device(id=str(i), model=model, promised=share) for i, share in enumerate(promised))
    return Node(id="a", devices=devices, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "request_", "node", "refusal"),
    [
        (NotDraining(), Request(), Node(id="a", is_draining=True), ("is draining", "now")),
        (
            NotDraining(),
            Request(),
            Node(id="a", is_draining=True, drains_because="its daemon has ended"),
            ("its daemon has ended", "now"),
        ),
        (
            HasLabels(),
            Request(labels={"zone": "a"}),
            Node(id="a", labels={"zone": "b"}),
            ("needs label zone=a, has zone=b", "never"),
        ),
        (
            HasLabels(),
            Request(labels={"a": "1", "zone": "a"}),
            Node(id="a", labels={"a": "1"}),
            ("needs label zone=a, has no label zone", "never"),
        ),
        (HasLabels(), Request(labels={"node": "a"}), Node(id="a"), None),
        (
            HasLabels(),
            Request(labels={"node": "b"}),
            Node(id="a"),
            ("needs label node=b, has node=a", "never"),
        ),
        (HasLabels(), Request(labels={"node": "b"}), Node(id="a", labels={"node": "b"}), None),
        (
            Tolerates(),
            Request(tolerates=("x",)),
            Node(id="a", taints=("x", "team=b")),
            ("is kept for kernels that tolerate team=b", "never"),
        ),
        (
            HasCpus(),
            Request(cpus=4),
            Node(id="a", cpus=4, cpus_promised=0.5),
            ("needs 4 CPUs, 3.5 free", "now"),
        ),
        (HasCpus(), Request(cpus=4), Node(id="a", cpus=2), ("needs 4 CPUs, has 2", "never")),
        (HasCpus(), Request(cpus=1), Node(id="a", cpus=1, cpus_promised=3), ("needs 1 CPU, 0 free", "now")),
        (
            HasMemory(),
            Request(memory_bytes=GIB),
            Node(id="a", memory_bytes=GIB, memory_promised_bytes=GIB // 2),
            ("needs 1 GiB memory, 512 MiB free", "now"),
        ),
        (
            HasMemory(),
            Request(memory_bytes=GIB + 1),
            Node(id="a", memory_bytes=GIB),
            ("needs 1 GiB memory, has 1 GiB", "never"),
        ),
        (
            HasResources(),
            Request(resources={"licence": 2}),
            Node(id="a", resources={"licence": 4}, resources_promised={"licence": 3}),
            ("needs 2 licence, 1 free", "now"),
        ),
        (
            HasResources(),
            Request(resources={"licence": 1}),
            Node(id="a", resources={"licence": 1}, resources_promised={"licence": 3}),
            ("needs 1 licence, 0 free", "now"),
        ),
        (
            HasResources(),
            Request(resources={"licence": 1.5}),
            Node(id="a", resources={"licence": 1}),
            ("needs 1.5 licence, has 1", "never"),
        ),
        (
            HasResources(),
            Request(resources={"disk": 1, "licence": 1}),
            Node(id="a", resources={"disk": 1}, resources_promised={"disk": 1}),
            ("needs 1 licence, has none", "never"),
        ),
        (HasGpus(), Request(gpus=1e-9), Node(id="a"), ("needs 0 GPU, has none", "never")),
        (HasGpus(), Request(gpus=1), Node(id="a"), ("needs 1 GPU, has none", "never")),
        (HasGpus(), Request(gpus=1), _gpus(0.75), ("needs 1 GPU, 0.25 free", "now")),
        (HasGpus(), Request(gpus=0.8), _gpus(0.6, 0.6), ("needs 0.8 GPU, 0.4 free on the freest", "now")),
        (HasGpus(), Request(gpus=2), _gpus(0, 0.1), ("needs 2 GPUs, 1 wholly free", "now")),
        (HasGpus(), Request(gpus=3), _gpus(0, 0), ("needs 3 GPUs, has 2", "never")),
        (HasGpus(), Request(gpus=1), _gpus(0, 0, gpus_promised=1.5), ("needs 1 GPU, 0.5 free", "now")),
        (HasGpus(), Request(gpus=1), _gpus(0, gpus_promised=3), ("needs 1 GPU, 0 free", "now")),
        (HasGpus(), Request(gpus=1, gpu_models=("A100", "T4")), _gpus(0, model="NVIDIA A100"), None),
        (HasGpus(), BIG, _sizes(24, 40), None),
        (HasGpus(), BIG, _sizes(24, 24), ("needs 1 GPU with 40 GiB, has none", "never")),
        (HasGpus(), BIG, _sizes(0, 24), ("needs 1 GPU with 40 GiB, has none (1 of unknown memory)", "never")),
        (HasGpus(), BIG, _sizes(80, promised=0.5), ("needs 1 GPU with 40 GiB, 0.5 free", "now")),
        (
            HasGpus(),
            Request(gpus=2, gpu_memory_bytes=40 * GIB),
            _sizes(80, 24, 0),
            ("needs 2 GPUs with 40 GiB each, has 1 (1 of unknown memory)", "never"),
        ),
        (
            HasGpus(),
            Request(gpus=1, gpu_models=("T4",)),
            _gpus(0, 0),
            ("needs 1 GPU of model T4, has none", "never"),
        ),
    ],
)
def test_filter(rule: Filter, request_: Request, node: Node, refusal: tuple[str, str] | None) -> None:
    others = [Node(id="0", cpus=64, memory_bytes=2**40), _gpus(0, 0, 0, 0, 0)]
    others[1] = Node(id="z", devices=others[1].devices)  # a wider node, so that this one is padded
    snapshot = Snapshot.of([*others, node])
    row = snapshot.row("a")
    assert _passes(rule, request_, snapshot)[row] is (refusal is None)
    part = snapshot.part(np.array([row]))
    assert _passes(rule, request_, part) == [refusal is None]
    if refusal is not None:
        reason, when = refusal
        assert rule.reason(request_, node) == reason
        assert _passes(rule, request_, snapshot.as_empty())[row] is (when == "now")
        assert _passes(rule, request_, part.as_empty()) == [when == "now"]
        assert _passes(rule, request_, snapshot.as_empty().part(np.array([row]))) == [when == "now"]


def _passes(rule: Filter, request: Request, snapshot: Snapshot) -> list[bool]:
    passes = rule.passes(request, snapshot)
    if passes is None:
        return [True] * len(snapshot)
    assert passes.dtype == bool
    return passes.tolist()


@pytest.mark.parametrize("rule", [HasLabels(), HasGpus(), HasMemory(), HasCpus(), HasResources()])
def test_a_filter_without_effect_returns_none(rule: Filter) -> None:
    assert rule.passes(Request(), Snapshot.of([Node(id="a")])) is None
