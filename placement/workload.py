"""What is known of the requests to come: how often which amounts are asked for. All that policies learn is here.

Small, explicit and serialisable: counts per class of requests, and the GPUs there were. The tables that scorers read
are worked out from it on first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from roost.placement.engine.columns import FloatArray, IntArray

from .model import Request
from .snapshot import Snapshot

T = TypeVar("T")

MILLI = 1000
"""A whole GPU in the tables' unit."""
USEFUL_FROM = 20
"""Requests after which a workload ranks better than none (measured on a real trace, `benchmarks/placement.py`)."""
_TYPICAL = 0.95
"""The typical classes are the most frequent that together cover this share of the requests, as in FGD (ATC '23)."""
_OFFERS = 100
"""So many requests are offered to a device before what is left of it counts as wasted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A class of requests, and how many of them there were."""

    cpus: float
    gpus: float
    memory_bytes: int = 0
    gpu_models: tuple[str, ...] = ()
    count: float = 1.0

    @property
    def milli(self) -> int:
        """What it takes of each of its GPUs, in thousandths."""
        return round(min(self.gpus, 1.0) * MILLI)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Classes of requests seen, and GPUs by model.

    >>> seen = Workload.of([Request(cpus=4, gpus=0.5)] * 30, {"A100": 8})
    >>> seen.is_useful, seen.asked[0].count
    (True, 30.0)
    """

    asked: tuple[Asked, ...] = ()
    gpus: Mapping[str, float] = field(default_factory=dict, hash=False)
    _made: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, requests: Iterable[Request], gpus: Snapshot | Mapping[str, float]) -> Workload:
        """The workload of these requests on a cluster with these GPUs (of a snapshot, or counted by model)."""
        counts = Counter((r.cpus, r.gpus, r.memory_bytes, r.gpu_models) for r in requests)
        asked = tuple(
            Asked(cpus=cpus, gpus=gpu_count, memory_bytes=memory, gpu_models=models, count=float(count))
            for (cpus, gpu_count, memory, models), count in sorted(counts.items())
        )
        return cls(asked=asked, gpus=gpus_by_model(gpus) if isinstance(gpus, Snapshot) else dict(gpus))

    @property
    def count(self) -> float:
        return sum(each.count for each in self.asked)

    @property
    def is_useful(self) -> bool:
        """Whether there are enough requests with GPUs to learn from."""
        return sum(each.count for each in self.asked if each.gpus) >= USEFUL_FROM

    def to_dict(self) -> dict[str, Any]:
        """The workload as JSON types; ``from_dict`` is the inverse."""
        return {
            "asked": [
                {
                    "cpus": a.cpus,
                    "gpus": a.gpus,
                    "memory_bytes": a.memory_bytes,
                    "gpu_models": list(a.gpu_models),
                    "count": a.count,
                }
                for a in self.asked
            ],
            "gpus": dict(self.gpus),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Workload:
        """Reads ``to_dict``'s form; raises ``ValueError`` where it is none."""
        try:
            asked = tuple(
                Asked(
                    cpus=float(a["cpus"]),
                    gpus=float(a["gpus"]),
                    memory_bytes=int(a["memory_bytes"]),
                    gpu_models=tuple(a["gpu_models"]),
                    count=float(a["count"]),
                )
                for a in data["asked"]
            )
            return cls(asked=asked, gpus={str(model): float(n) for model, n in data["gpus"].items()})
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise ValueError(f"this is no workload: {type(problem).__name__} {problem}.") from None

    # What scorers read

    def pressure(self, models: tuple[str, ...]) -> FloatArray:
        """(models + 1,) for each model the share of the demand that insists on it, over its share of the GPUs, squared.

        Squared, since a model of which half is insisted on has GPUs to spare for others, and one of which all is has
        none. A request that takes several models insists on each by its share of their GPUs. The last entry, 0, is
        for no device.
        """
        return self._keep(("pressure", models), lambda: self._pressure(models))  # type: ignore[no-any-return]

    def per_gpu(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Typical requests with GPUs: GPUs per CPU, GPUs per byte of memory (infinite where none is asked for), and
        their share of the GPUs asked for, (classes,) each."""
        return self._keep("per_gpu", self._per_gpu)  # type: ignore[no-any-return]

    def sliver_waste(self) -> FloatArray:
        """(1001,) by what is left of a GPU in thousandths: the share of the GPU that is expected to stay unused."""
        return self._keep("sliver_waste", self._sliver_waste)  # type: ignore[no-any-return]

    def fragments(self, models: tuple[str, ...]) -> Fragments:
        """Tables of the expected fragmentation of a node."""
        return self._keep(("fragments", models), lambda: _fragments(self.asked, models))  # type: ignore[no-any-return]

    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _pressure(self, models: tuple[str, ...]) -> FloatArray:
        demand = sum(a.count * a.gpus for a in self.asked) or 1.0
        total = sum(self.gpus.values()) or 1.0
        insists = dict.fromkeys(self.gpus, 0.0)
        for a in self.asked:
            wants = Request(gpus=a.gpus, gpu_models=a.gpu_models) if a.gpu_models else None
            takes = [model for model in self.gpus if wants and wants.accepts_model(model)]
            there = sum(self.gpus[model] for model in takes)
            for model in takes:
                insists[model] += a.count * a.gpus * self.gpus[model] / there
        return np.square(
            [(insists.get(m, 0.0) / demand) / ((self.gpus.get(m) or total) / total) for m in models] + [0.0]
        )

    def _per_gpu(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        counts: Counter[tuple[float, float]] = Counter()
        for a in self.asked:
            if a.gpus:
                counts[a.cpus / a.gpus, a.memory_bytes / a.gpus] += a.count * a.gpus  # type: ignore[assignment]
        typical, share = _typical(sorted(counts), [counts[ratios] for ratios in sorted(counts)])
        ratios = np.array(typical, dtype=np.float64).reshape(len(typical), 2)
        with np.errstate(divide="ignore"):
            return 1.0 / ratios[:, 0], 1.0 / ratios[:, 1], share

    def _sliver_waste(self) -> FloatArray:
        """After each offer, by dynamic programming: a request that fits takes its part, others leave all."""
        parts: Counter[int] = Counter()
        for a in self.asked:
            if a.gpus:
                parts[max(1, a.milli)] += a.count  # type: ignore[assignment]
        waste = np.arange(MILLI + 1) / MILLI
        for _ in range(_OFFERS if parts else 0):
            after = np.zeros(MILLI + 1)
            for part, count in parts.items():
                after[:part] += count * waste[:part]
                after[part:] += count * waste[: MILLI + 1 - part]
            waste = after / parts.total()
        return waste


def _typical(classes: Sequence[T], counts: Sequence[float]) -> tuple[list[T], FloatArray]:
    """The most frequent classes that together are `_TYPICAL` of all, most frequent first, and their shares."""
    if not classes:
        return [], np.zeros(0)
    order = sorted(range(len(classes)), key=lambda i: -counts[i])
    covered = np.cumsum([counts[i] for i in order])
    order = order[: int(np.searchsorted(covered, _TYPICAL * covered[-1])) + 1]
    share = np.array([counts[i] for i in order], dtype=np.float64)
    return [classes[i] for i in order], share / share.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragments:
    """The expected fragmentation F of FGD (Weng et al., ATC '23, section 4.2) as tables, exact in thousandths.

    F is, over the typical classes, the mean of the GPU that a node has left and that a request of that class could not
    use: all of it when the class does not fit the node, else the devices with too little left for it. For a node whose
    CPUs suffice for the first k classes (ordered by CPUs), F is the sum over its devices of
    ``device[model, k, left]`` plus ``many[model, k, whole devices left]`` for classes of several GPUs.
    """

    cpus: FloatArray  # (classes,) ascending
    device: FloatArray  # (models + 1, classes + 1, 1001), the last model is no device
    many: FloatArray  # (models + 1, classes + 1, 65), from 64 whole devices on as 64
    flat: FloatArray  # `device` in one dimension
    first_cell: IntArray  # (models + 1,) where a model begins in it
    has_many: bool  # whether there is anything in `many`

    def k(self, cpus_left: FloatArray) -> IntArray:
        """For how many classes so many CPUs suffice."""
        return self.cpus.searchsorted(cpus_left + 1e-6, side="right")


def _fragments(asked: tuple[Asked, ...], models: tuple[str, ...]) -> Fragments:
    counts: Counter[Asked] = Counter()  # without memory, which the paper leaves out
    for a in asked:
        counts[replace(a, memory_bytes=0, count=1.0)] += a.count  # type: ignore[assignment]
    typical, share = _typical(list(counts), list(counts.values()))
    by_cpus = sorted(range(len(typical)), key=lambda i: typical[i].cpus)
    typical, share = [typical[i] for i in by_cpus], share[by_cpus]
    left = np.arange(MILLI + 1)
    device = np.zeros((len(models) + 1, len(typical) + 1, MILLI + 1))
    many = np.zeros((len(models) + 1, len(typical) + 1, 65))
    for m, model in enumerate(models):
        usable = np.zeros(MILLI + 1)
        device[m, 0] = left
        for k, (a, p) in enumerate(zip(typical, share, strict=True)):
            many[m, k + 1] = many[m, k]
            if a.gpus and Request(gpus=a.gpus, gpu_models=a.gpu_models).accepts_model(model):
                usable = usable + p * (left >= a.milli)
                if a.gpus > 1:
                    whole = np.arange(65)
                    many[m, k + 1] += p * MILLI * whole * (whole < a.gpus)
            device[m, k + 1] = left * (1.0 - usable)
    return Fragments(
        cpus=np.array([a.cpus for a in typical]),
        device=device,
        many=many,
        flat=device.reshape(-1),
        first_cell=np.arange(len(device)) * device[0].size,
        has_many=bool(many.any()),
    )


def gpus_by_model(snapshot: Snapshot) -> dict[str, float]:
    """How many GPUs of each model there are."""
    models = snapshot.columns.device_model
    return {model: float((models == i).sum()) for i, model in enumerate(snapshot.models)}
