"""A summary of recent requests. Policies learn only from this.

It counts the requests of each class, and the cluster's GPUs by model. The tables that scorers read are computed from
these counts on first use.
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
"""One whole GPU in the unit of the tables."""
USEFUL_FROM = 20
"""At least this many requests with GPUs make a workload useful (measured: `benchmarks/placement.py`)."""
_TYPICAL = 0.95
"""The typical classes are the most frequent classes that together cover this share of the requests (FGD, ATC '23)."""
_OFFERS = 100
"""After this many offered requests, the free share of a device counts as wasted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """The number of requests that asked for the same amounts.

    >>> RequestClass(cpus=4, gpus=0.5, count=30).milli
    500
    """

    cpus: float
    gpus: float
    memory_bytes: int = 0
    gpu_models: tuple[str, ...] = ()
    count: float = 1.0

    @property
    def milli(self) -> int:
        """The share that a request takes of each of its GPUs, in thousandths."""
        return round(min(self.gpus, 1.0) * MILLI)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A summary of recent requests: their classes, and the GPUs of the cluster by model.

    >>> seen = Workload.of([Request(cpus=4, gpus=0.5)] * 30, {"A100": 8})
    >>> seen.is_useful, seen.classes[0].count
    (True, 30.0)
    """

    classes: tuple[RequestClass, ...] = ()
    gpus: Mapping[str, float] = field(default_factory=dict, hash=False)
    _tables: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, requests: Iterable[Request], gpus: Snapshot | Mapping[str, float]) -> Workload:
        """Return the workload of these requests on a snapshot, or on a cluster with these GPUs by model."""
        counts = Counter((r.cpus, r.gpus, r.memory_bytes, r.gpu_models) for r in requests)
        classes = tuple(
            RequestClass(
                cpus=cpus, gpus=gpu_count, memory_bytes=memory, gpu_models=models, count=float(count)
            )
            for (cpus, gpu_count, memory, models), count in sorted(counts.items())
        )
        return cls(classes=classes, gpus=count_gpus(gpus) if isinstance(gpus, Snapshot) else dict(gpus))

    @property
    def count(self) -> float:
        return sum(each.count for each in self.classes)

    @property
    def is_useful(self) -> bool:
        """True if there are enough requests with GPUs to learn from."""
        return sum(each.count for each in self.classes if each.gpus) >= USEFUL_FROM

    def pressure(self, models: tuple[str, ...]) -> FloatArray:
        """Return (models + 1,) the pressure on each model. The last element, 0, stands for "no device".

        The pressure is the share of the demand that requires the model, over the model's share of the GPUs, squared.
        The square spares a model that is half required, because it has GPUs for others. A request that accepts several
        models counts for each by its share of their GPUs.
        """
        return self._keep(("pressure", models), lambda: self._pressure(models))  # type: ignore[no-any-return]

    def per_gpu(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return, for the typical requests with GPUs, (classes,) GPUs per CPU, GPUs per byte, and shares of the GPUs.

        GPUs per CPU or byte are infinite if a class asks for no CPUs or no memory.
        """
        return self._keep("per_gpu", self._per_gpu)  # type: ignore[no-any-return]

    def sliver_waste(self) -> FloatArray:
        """Return (1001,) the share of a GPU expected to stay unused, by the free thousandths of the GPU."""
        return self._keep("sliver_waste", self._sliver_waste)  # type: ignore[no-any-return]

    def fragments(self, models: tuple[str, ...]) -> FragmentTables:
        """Return the tables of the expected fragmentation of a node."""
        return self._keep(("fragments", models), lambda: _build_fragments(self.classes, models))  # type: ignore[no-any-return]

    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._tables:
            self._tables[key] = make()
        return self._tables[key]

    def _pressure(self, models: tuple[str, ...]) -> FloatArray:
        demand = sum(a.count * a.gpus for a in self.classes) or 1.0
        total = sum(self.gpus.values()) or 1.0
        insists = dict.fromkeys(self.gpus, 0.0)
        for a in self.classes:
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
        for a in self.classes:
            if a.gpus:
                counts[a.cpus / a.gpus, a.memory_bytes / a.gpus] += a.count * a.gpus  # type: ignore[assignment]
        typical, share = _find_typical(sorted(counts), [counts[ratios] for ratios in sorted(counts)])
        ratios = np.array(typical, dtype=np.float64).reshape(len(typical), 2)
        with np.errstate(divide="ignore"):
            return 1.0 / ratios[:, 0], 1.0 / ratios[:, 1], share

    def _sliver_waste(self) -> FloatArray:
        """Offer random requests to a GPU, by dynamic programming. A request that fits takes its part."""
        parts: Counter[int] = Counter()
        for a in self.classes:
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


def _find_typical(classes: Sequence[T], counts: Sequence[float]) -> tuple[list[T], FloatArray]:
    """Return the most frequent classes that cover `_TYPICAL` of all requests, and their shares."""
    if not classes:
        return [], np.zeros(0)
    order = sorted(range(len(classes)), key=lambda i: -counts[i])
    covered = np.cumsum([counts[i] for i in order])
    order = order[: int(np.searchsorted(covered, _TYPICAL * covered[-1])) + 1]
    share = np.array([counts[i] for i in order], dtype=np.float64)
    return [classes[i] for i in order], share / share.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentTables:
    """The expected fragmentation F of FGD (Weng et al., ATC '23, section 4.2) as tables, exact in thousandths of a GPU.

    F is the free GPU share of a node that a typical request cannot use, as a mean over the typical classes. A class
    that does not fit the node can use nothing. Other classes cannot use devices that have too little left. The classes
    are ordered by CPUs. If the node's CPUs suffice for the first k classes, F is the sum of ``device[model, k, left]``
    over the node's devices. Classes of several GPUs add ``many[model, k, whole devices left]``.
    """

    cpus: FloatArray  # (classes,) ascending
    device: FloatArray  # (models + 1, classes + 1, 1001), the last model is no device
    many: FloatArray  # (models + 1, classes + 1, 65); 64 stands for 64 whole devices and more
    flat: FloatArray  # `device` in one dimension
    first_cell: IntArray  # (models + 1,) the index in `flat` at which a model begins
    has_many: bool  # True if `many` has a value above 0

    def k(self, cpus_left: FloatArray) -> IntArray:
        """Return the number of classes for which these CPUs suffice."""
        return self.cpus.searchsorted(cpus_left + 1e-6, side="right")


def _build_fragments(classes: tuple[RequestClass, ...], models: tuple[str, ...]) -> FragmentTables:
    counts: Counter[RequestClass] = Counter()  # without memory, as in the paper
    for a in classes:
        counts[replace(a, memory_bytes=0, count=1.0)] += a.count  # type: ignore[assignment]
    typical, share = _find_typical(list(counts), list(counts.values()))
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
    return FragmentTables(
        cpus=np.array([a.cpus for a in typical]),
        device=device,
        many=many,
        flat=device.reshape(-1),
        first_cell=np.arange(len(device)) * device[0].size,
        has_many=bool(many.any()),
    )


def count_gpus(snapshot: Snapshot) -> dict[str, float]:
    """Return the number of GPUs of each model."""
    models = snapshot.columns.device_model
    return {model: float((models == i).sum()) for i, model in enumerate(snapshot.models)}
