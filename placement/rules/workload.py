"""A summary of recent requests: their counts, and tables for scorers. Policies learn only from this summary."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from roost.placement.model import Request
from roost.placement.tables.columns import FloatArray, IntArray
from roost.placement.tables.snapshot import Snapshot

T = TypeVar("T")
P = ParamSpec("P")

MILLI = 1000
"""One whole GPU in the unit of the tables."""
USEFUL_FROM = 20
"""At least this many requests with GPUs make a workload useful (measured: `benchmarks/placement.py`)."""
_TYPICAL = 0.95
"""The typical classes are the most frequent classes that together cover this share of the requests (FGD, ATC '23)."""
_OFFERS = 100
"""A share of a device that is still free after this many random requests were offered counts as wasted."""


def _keep(compute: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method of `Workload`: compute its result once for the same arguments, and keep it."""

    @wraps(compute)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        tables: dict[Any, Any] = args[0]._tables  # type: ignore[attr-defined]
        key = compute.__name__, *args[1:], *kwargs.values()
        if key not in tables:
            tables[key] = compute(*args, **kwargs)
        return tables[key]  # type: ignore[no-any-return]

    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A summary of recent requests, and the GPUs of the cluster by model.

    ``classes`` are the different requests, with their amounts and models only, each with its count.

    >>> seen = Workload.of([Request(cpus=4, gpus=0.5)] * 30, {"A100": 8})
    >>> seen.is_useful, seen.classes[0][1]
    (True, 30.0)
    """

    classes: tuple[tuple[Request, float], ...] = ()
    gpus: Mapping[str, float] = field(default_factory=dict, hash=False)
    _tables: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, requests: Iterable[Request], gpus: Snapshot | Mapping[str, float]) -> Workload:
        """Return the workload of these requests.

        ``gpus`` is a snapshot, or the number of GPUs of each model.
        """
        counts = Counter(map(get_class, requests))
        classes = tuple((build_request(*key), float(count)) for key, count in sorted(counts.items()))
        return cls(classes=classes, gpus=count_gpus(gpus) if isinstance(gpus, Snapshot) else dict(gpus))

    @property
    def is_useful(self) -> bool:
        """True if there are enough requests with GPUs to learn from."""
        return sum(count for asked, count in self.classes if asked.gpus) >= USEFUL_FROM

    @_keep
    def pressure(self, models: tuple[str, ...]) -> FloatArray:
        """Return (models + 1,) the pressure on each GPU model. The last element, 0, stands for "no device".

        The pressure is the share of the demand that requires the model, divided by the model's share of the GPUs, and
        squared. The square makes a pressure below 1 smaller, because such a model has GPUs for other requests. A
        request for several models counts for each model by the model's share of their GPUs.
        """
        demand = sum(count * asked.gpus for asked, count in self.classes) or 1.0
        total = sum(self.gpus.values()) or 1.0
        insists = dict.fromkeys(self.gpus, 0.0)
        for asked, count in self.classes:
            # A model whose nodes have all left has no GPUs.
            takes = [
                m for m, gpus in self.gpus.items() if gpus and asked.gpu_models and asked.accepts_model(m)
            ]
            there = sum(self.gpus[model] for model in takes)
            for model in takes:
                insists[model] += count * asked.gpus * self.gpus[model] / there
        return np.square(
            [(insists.get(m, 0.0) / demand) / ((self.gpus.get(m) or total) / total) for m in models] + [0.0]
        )

    @_keep
    def per_gpu(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return three arrays, (classes,), for typical requests with GPUs: GPUs per CPU, GPUs per byte, and shares.

        The shares are of the demand for GPUs. A ratio is infinite for a class that asks for no CPUs or no memory.
        """
        counts: dict[tuple[float, float], float] = defaultdict(float)
        for asked, count in self.classes:
            if asked.gpus:
                counts[asked.cpus / asked.gpus, asked.memory_bytes / asked.gpus] += count * asked.gpus
        typical, share = _find_typical(sorted(counts), [counts[ratios] for ratios in sorted(counts)])
        ratios = np.array(typical, dtype=np.float64).reshape(len(typical), 2)
        with np.errstate(divide="ignore"):
            return 1.0 / ratios[:, 0], 1.0 / ratios[:, 1], share

    @_keep
    def sliver_waste(self) -> FloatArray:
        """Return (1001,), by the free thousandths of a GPU: the share of the GPU that will stay unused.

        The share that is left after `_OFFERS` random requests were offered to the GPU counts as unused.
        """
        parts: dict[int, float] = defaultdict(float)
        for asked, count in self.classes:
            if asked.gpus:
                parts[max(1, _milli(asked))] += count
        waste = np.arange(MILLI + 1) / MILLI
        for _ in range(_OFFERS if parts else 0):
            after = np.zeros(MILLI + 1)
            for part, count in parts.items():
                after[:part] += count * waste[:part]
                after[part:] += count * waste[: MILLI + 1 - part]
            waste = after / sum(parts.values())
        return waste

    @_keep
    def fragments(self, models: tuple[str, ...]) -> FragmentTables:
        return _build_fragments(self.classes, models)


def get_class(request: Request) -> tuple[float, float, int, tuple[str, ...]]:
    """Return the fields by which requests are counted, as arguments for `build_request`."""
    return request.cpus, request.gpus, request.memory_bytes, request.gpu_models


def build_request(cpus: float, gpus: float, memory_bytes: int, gpu_models: Sequence[str]) -> Request:
    return Request(cpus=cpus, gpus=gpus, memory_bytes=memory_bytes, gpu_models=tuple(gpu_models))


def _milli(request: Request) -> int:
    """Return the share that a request takes of each of its GPUs, in thousandths."""
    return round(request.gpu_share * MILLI)


def _find_typical(classes: Sequence[T], counts: Sequence[float]) -> tuple[list[T], FloatArray]:
    """Return the most frequent classes that together cover `_TYPICAL` of all requests, and their shares."""
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

    F is the free GPU share that a typical request cannot use, as a mean over the classes of requests. The classes are
    in the order of their CPUs. If the node's CPUs suffice for the first k classes, F is the sum of ``device[model, k,
    left]`` over the node's devices, plus ``many[model, k, whole devices left]`` for classes of several GPUs.
    """

    cpus: FloatArray  # (classes,) ascending
    device: FloatArray  # (models + 1, classes + 1, 1001), the last model is no device
    many: FloatArray  # (models + 1, classes + 1, 65); 64 stands for 64 whole devices and more
    has_many: bool  # True if `many` has a value above 0

    def k(self, cpus_left: FloatArray) -> IntArray:
        """Return, for each element, how many classes ask for at most ``cpus_left`` CPUs."""
        return self.cpus.searchsorted(cpus_left + 1e-6, side="right")


def _build_fragments(classes: tuple[tuple[Request, float], ...], models: tuple[str, ...]) -> FragmentTables:
    counts: dict[Request, float] = defaultdict(float)  # without memory, as in the paper
    for asked, count in classes:
        counts[replace(asked, memory_bytes=0)] += count
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
            if a.gpus and a.accepts_model(model):
                usable = usable + p * (left >= _milli(a))
                if a.gpus > 1:
                    whole = np.arange(65)
                    many[m, k + 1] += p * MILLI * whole * (whole < a.gpus)
            device[m, k + 1] = left * (1.0 - usable)
    return FragmentTables(
        cpus=np.array([a.cpus for a in typical]),
        device=device,
        many=many,
        has_many=bool(many.any()),
    )


def count_gpus(snapshot: Snapshot) -> dict[str, float]:
    models = snapshot.columns.device_model
    return {model: float((models == i).sum()) for i, model in enumerate(snapshot.models)}
