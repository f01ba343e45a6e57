"""The scorers of the shipped policies. A score is about 0..1 before its weight, higher is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .snapshot import FloatArray, IntArray, Snapshot
from .values import EPSILON, UNKNOWN_USE, Request

Resource = Literal["gpu", "memory", "cpu"]


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

    def score(self, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray | None:
        c = snapshot.columns
        if self.resource == "gpu":
            return _share(c.gpus_free[rows] - request.gpus, _floats(c.gpus[rows])) if request.gpus else None
        if self.resource == "memory":
            asked, used = float(request.memory_bytes), c.memory_used_bytes[rows]
            total, free = _floats(c.memory_bytes[rows]), _floats(c.memory_free_bytes[rows])
        else:
            asked, used = request.cpus, c.cpus_used[rows]
            total, free = c.cpus[rows], c.cpus_free[rows]
        if not asked and (self.real or not request.is_best_effort):
            return None
        left = _share(free - asked, total)
        return np.minimum(left, _share(_unused(total, used) - asked, total)) if self.real else left


class NotBusy:
    """1 where the devices to be used are idle beyond their promises, 0 where others keep them busy."""

    name = "not_busy"
    needs_metrics = True

    def score(self, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray | None:
        if not request.gpus:
            return None
        excess = np.sort(_of_fitting(snapshot.columns.device_excess, request, snapshot, rows), axis=1)
        best: FloatArray = 1.0 - excess[:, : request.gpu_count].mean(axis=1)
        return best


class SpareGpus:
    """1 for nodes without GPUs, 0 for others, when the request needs none: it leaves them to those who do."""

    name = "spare_gpus"
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray | None:
        return None if request.gpus else (snapshot.columns.gpus[rows] == 0).astype(np.float64)


class FullestDevice:
    """For a share of a GPU: 1 where it fills a device, less where more of the device would be left over."""

    name = "device"
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray | None:
        if not 0 < request.gpus < 1:
            return None
        fullest: FloatArray = _of_fitting(snapshot.columns.device_free, request, snapshot, rows).min(axis=1)
        return 1.0 - (fullest - request.gpus)


class LowLoad:
    """For best-effort requests: 1 on an idle node, 0 where CPUs or memory are in full use."""

    name = "load"
    needs_metrics = True

    def score(self, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray | None:
        if not request.is_best_effort:
            return None
        c = snapshot.columns
        cpus = _share(_unused(c.cpus[rows], c.cpus_used[rows]), c.cpus[rows])
        total = _floats(c.memory_bytes[rows])
        memory = _share(_unused(total, c.memory_used_bytes[rows]), total)
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

    def score(self, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray | None:
        if self.best_effort_only and not request.is_best_effort:
            return None
        c = snapshot.columns
        size = np.maximum(c.gpus[rows] if request.gpus else c.cpus[rows], 0.01)
        return -(c.kernels[rows] + 1.0) / size


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, 0 where there is nothing."""
    result: FloatArray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return result


def _unused(total: FloatArray, used: FloatArray) -> FloatArray:
    result: FloatArray = total - np.where(np.isnan(used), UNKNOWN_USE * total, used)
    return result


def _of_fitting(values: FloatArray, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray:
    """(len(rows), d) the values of devices on which the request fits, inf elsewhere."""
    fits = snapshot.columns.device_free[rows] >= request.gpu_share - EPSILON
    return np.where(fits & snapshot.accepted_devices(request)[rows], values[rows], np.inf)


def _floats(values: IntArray) -> FloatArray:
    return values.astype(np.float64)
