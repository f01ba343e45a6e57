"""The scorers of the shipped policies: what is free, what is really used, where a kernel starts fast.

Those that look at what is left for the requests to come are in `packing`. A score is about 0..1 before its weight,
higher is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from .model import UNKNOWN_USE, Request
from .snapshot import FloatArray, IntArray, Snapshot

Resource = Literal["gpu", "memory", "cpu"]
_ONE = np.array(1.0)


class Scorer(Protocol):
    """Rates nodes; higher is better, about 0..1 by custom."""

    @property
    def name(self) -> str: ...

    @property
    def needs_metrics(self) -> bool:
        """Whether the rating means little where real use is unknown."""
        ...

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        """(n_nodes,) finite ratings of nodes; or (n_nodes, n_devices), of each device, of which the best count
        that fit the request. None: no say on such requests.

        Nodes that a filter refuses may be among them: what is said of these is ignored. A node's rating must depend
        on that node alone, and not on the age of its metrics: only nodes that changed are rated again.
        """
        ...


Weighted = tuple[tuple[Scorer, float], ...]
"""Scorers, each with its weight."""


@dataclass(frozen=True, slots=True)
class Available:
    """The share of a resource that stays available once the kernel is there.

    With ``real`` it is what is neither promised nor in use, otherwise what is not promised. Says nothing
    about a resource that is not asked for, except that promised memory and CPU are rated for best-effort
    requests. Real use of GPUs is the part of ``NotBusy``.
    """

    resource: Resource
    real: bool = False

    @property
    def name(self) -> str:
        return self.resource

    @property
    def needs_metrics(self) -> bool:
        return self.real

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c = snapshot.columns
        if self.resource == "gpu":
            return _share(c.gpus_free - request.gpus, _floats(c.gpus)) if request.gpus else None
        if self.resource == "memory":
            asked, used = float(request.memory_bytes), c.memory_used_bytes
            total, free = _floats(c.memory_bytes), _floats(c.memory_free_bytes)
        else:
            asked, used = request.cpus, c.cpus_used
            total, free = c.cpus, c.cpus_free
        if not asked and (self.real or not request.is_best_effort):
            return None
        left = _share(free - asked, total)
        return np.minimum(left, _share(_unused(total, used) - asked, total)) if self.real else left


class NotBusy:
    """Per device: 1 where it is idle beyond its promises, 0 where others keep it busy."""

    name = "not_busy"
    needs_metrics = True

    def applies(self, request: Request) -> bool:
        return bool(request.gpus)

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        return _ONE - snapshot.columns.device_excess if request.gpus else None


class SpareGpus:
    """1 for nodes without GPUs, 0 for others, when the request needs none: it leaves them to those who do."""

    name = "spare_gpus"
    needs_metrics = False

    def applies(self, request: Request) -> bool:
        return not request.gpus

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        return None if request.gpus else (snapshot.columns.gpus == 0).astype(np.float64)


@dataclass(frozen=True, slots=True)
class FullestDevice:
    """Per device, for a share of a GPU: 1 where it fills the device, less where more of it would be left over.

    ``is_emptiest``: the other way round.
    """

    is_emptiest: bool = False
    name = "device"
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not 0 < request.gpus < 1:
            return None
        left = np.maximum(snapshot.columns.device_free, 0.0) - request.gpus
        return left if self.is_emptiest else 1.0 - left


class LowLoad:
    """For best-effort requests: 1 on an idle node, 0 where CPUs or memory are in full use."""

    name = "load"
    needs_metrics = True

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not request.is_best_effort:
            return None
        c = snapshot.columns
        cpus = _share(_unused(c.cpus, c.cpus_used), c.cpus)
        total = _floats(c.memory_bytes)
        memory = _share(_unused(total, c.memory_used_bytes), total)
        return np.minimum(cpus, memory)


@dataclass(frozen=True, slots=True)
class FewKernels:
    """Fewest kernels for the node's size, this one counted: ``-(kernels + 1) / size``.

    Size is GPUs for requests of GPUs, else CPUs. Choosing by it again and again keeps kernels proportional to
    size, as d'Hondt's rule does seats to votes, without any memory of the last choice.
    """

    best_effort_only: bool = False
    name = "kernels"
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if self.best_effort_only and not request.is_best_effort:
            return None
        c = snapshot.columns
        size = np.maximum(c.gpus if request.gpus else c.cpus, 0.01)
        return -(c.kernels + 1.0) / size


@dataclass(frozen=True, slots=True)
class WithoutGpus:
    """Another scorer's say on requests that need no GPU; a tenth on nodes with GPUs: packing comes first there."""

    scorer: Scorer

    @property
    def name(self) -> str:
        return self.scorer.name

    @property
    def needs_metrics(self) -> bool:
        return self.scorer.needs_metrics

    def applies(self, request: Request) -> bool:
        return not request.gpus

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        scores = None if request.gpus else self.scorer.score(request, snapshot)
        return None if scores is None else scores * np.where(snapshot.columns.gpus > 0, 0.1, 1.0)


class Warm:
    """1 on nodes whose agent has the request's environment warm: kernels start there in milliseconds."""

    name = "warm"
    needs_metrics = False

    def applies(self, request: Request) -> bool:
        return bool(request.environment)

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        wanted = request.environment
        if not wanted:
            return None
        return snapshot.mask(("warm", wanted), lambda node: wanted in node.warm).astype(np.float64)


class Near:
    """The share of the labels that the request would like (``Request.near``) which the node has."""

    name = "near"
    needs_metrics = False

    def applies(self, request: Request) -> bool:
        return bool(request.near)

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not request.near:
            return None
        has = [snapshot.has_labels([label]) for label in request.near.items()]
        shares: FloatArray = np.mean(has, axis=0, dtype=np.float64)
        return shares


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, 0 where there is nothing."""
    result: FloatArray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return result


def _unused(total: FloatArray, used: FloatArray) -> FloatArray:
    result: FloatArray = total - np.where(np.isnan(used), UNKNOWN_USE * total, used)
    return result


def _floats(values: IntArray) -> FloatArray:
    return values.astype(np.float64)
