"""The scorers of the shipped policies: free resources, real use, fast starts and preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from roost.placement.model import Request
from roost.placement.model.node import UNKNOWN_USE
from roost.placement.tables.snapshot import FloatArray, IntArray, Snapshot

_ONE = np.array(1.0)


class Scorer(Protocol):
    """A rule that rates nodes. A higher score is better, and scores are about 0..1 by convention.

    >>> import numpy as np
    >>> class FirstLetter:
    ...     name, needs_metrics = "first_letter", False
    ...     def score(self, request, snapshot):
    ...         return np.array([float(node_id[0] == "z") for node_id in snapshot.nodes])
    >>> from roost.placement import Node, Pipeline, Request, Snapshot
    >>> mine = Pipeline(name="mine", scorers=((FirstLetter(), 1.0),))
    >>> mine.place(Request(), Snapshot.of([Node(id="a"), Node(id="z")])).placement.node_id
    'z'
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_metrics(self) -> bool:
        """True if the score means little for nodes with unknown real use."""
        ...

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        """Return finite scores: (n_nodes,) of nodes, or (n_nodes, n_devices) of devices. None is no opinion.

        Only the best devices that fit count, as many as the request asks for. The scores of nodes that a
        filter refuses are ignored. A score must depend on its node alone, and not on the age of the metrics,
        because only changed nodes are scored again.
        """
        ...


WeightedScorers = tuple[tuple[Scorer, float], ...]
"""Pairs of a scorer and its weight."""


@dataclass(frozen=True, slots=True)
class Available:
    """A scorer of the share of a resource that is not promised after the kernel's start.

    With ``real``, the score is at most the share that is really unused after the start. The scorer has no opinion on a
    resource that the request does not ask for. One exception: without ``real``, memory and CPUs count for best-effort
    requests too.
    """

    name: Literal["gpu", "memory", "cpu"]
    real: bool = False

    @property
    def needs_metrics(self) -> bool:
        return self.real

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c = snapshot.columns
        if self.name == "gpu":
            return _share(c.gpus_free - request.gpus, _floats(c.gpus)) if request.gpus else None
        if self.name == "memory":
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
    """A scorer of devices: 1 if nobody uses the device beyond its promises, less if others keep it busy."""

    name = "not_busy"
    needs_metrics = True

    def applies(self, request: Request) -> bool:
        return bool(request.gpus)

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        return _ONE - snapshot.columns.device_excess if request.gpus else None


class SpareGpus:
    """A scorer that keeps requests without GPUs off GPU nodes: 1 for nodes without GPUs, else 0."""

    name = "spare_gpus"
    needs_metrics = False

    def applies(self, request: Request) -> bool:
        return not request.gpus

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        return None if request.gpus else (snapshot.columns.gpus == 0).astype(np.float64)


@dataclass(frozen=True, slots=True)
class FullestDevice:
    """A scorer of devices for requests below one GPU. The fullest scores most; with ``is_emptiest``, the emptiest."""

    is_emptiest: bool = False
    name = "device"
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not 0 < request.gpus < 1:
            return None
        left = np.maximum(snapshot.columns.device_free, 0.0) - request.gpus
        return left if self.is_emptiest else 1.0 - left


class LowLoad:
    """A scorer for best-effort requests: 1 for an idle node, 0 if its CPUs or its memory are fully used."""

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
    """A scorer that prefers few kernels for the node's size: ``-(kernels + 1) / size`` (d'Hondt's method).

    The size is the number of GPUs for requests with GPUs, otherwise the number of CPUs.
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
    """A scorer that restricts another one to requests without GPUs.

    Its scores on GPU nodes are divided by ten.
    """

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


class WarmEnvironment:
    """A scorer for fast starts: 1 if a zygote for the request's interpreter is warm on the node, else 0."""

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
    """A scorer of preferred labels: the share of ``Request.near`` that the node has."""

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
    result: FloatArray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return result


def _unused(total: FloatArray, used: FloatArray) -> FloatArray:
    result: FloatArray = total - np.where(np.isnan(used), UNKNOWN_USE * total, used)
    return result


def _floats(values: IntArray) -> FloatArray:
    return values.astype(np.float64)
