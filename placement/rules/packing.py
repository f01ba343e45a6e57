"""The scorers that keep room for later requests. `Packing` combines them (see `benchmarks/placement.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from roost.placement.model import Request
from roost.placement.tables.snapshot import FloatArray, IntArray, Snapshot

from .scorers import Scorer
from .workload import MILLI, FragmentTables, Workload

LARGE_CPUS, LARGE_GPUS = 128.0, 8.0
"""The size of a large node, which makes CPUs and GPUs comparable: the largest node of the benchmark's trace."""

_NEARLY_NOTHING = np.array(1e-12)
"""A stand-in for 0, because 0 · infinity is not a number."""


@lru_cache(maxsize=1024)
def _count_taken(cpus: float, memory_bytes: int, gpus: float) -> tuple[FloatArray, int, int]:
    """Return what a request takes: its amounts, the number of devices, and the thousandths of each device.

    The amounts are (3, 2, 1): of CPUs, memory and GPUs, each as 0 before the request and the amount after it.
    """
    taken = np.array([[0.0, cpus], [0.0, memory_bytes], [0.0, gpus]])[:, :, None]
    return taken, math.ceil(gpus), round(min(gpus, 1.0) * MILLI)


@dataclass(frozen=True, slots=True)
class FragmentationGradient:
    """A scorer of the drop in the node's expected fragmentation (FGD: Weng et al., ATC '23, equation 4).

    Fragmentation is the free GPU share that a typical request cannot use. For requests with GPUs, devices are scored,
    otherwise nodes. With ``is_integer``, scores are whole percents of a sigmoid, as the authors have them.
    """

    workload: Workload
    is_integer: bool = False
    name: str = field(default="fragmentation", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c = snapshot.columns
        tables = self.workload.fragments(snapshot.models)
        before_k, after_k = tables.k(c.cpus_free), tables.k(c.cpus_free - request.cpus)
        devices, model, milli = tables.device, c.device_model, c.device_milli
        before = np.add.reduce(devices[model, before_k[:, None], milli], axis=1)
        after = devices[model, after_k[:, None], milli]
        left = np.add.reduce(after, axis=1)
        gain: FloatArray = before - left
        if request.gpus:
            share = round(request.gpu_share * MILLI)
            worth = after - devices[model, after_k[:, None], np.maximum(milli - share, 0)]
            gain = gain[:, None] + request.gpu_count * worth
        if tables.has_many and c.device_model.shape[1]:
            gain += self.several(request, snapshot, tables, before_k, after_k)
        if self.is_integer:
            gain = np.floor(100.0 / (1.0 + np.exp(-gain / MILLI))) * (MILLI / 100.0)
        return gain / MILLI

    @staticmethod
    def several(
        request: Request, snapshot: Snapshot, tables: FragmentTables, before_k: IntArray, after_k: IntArray
    ) -> FloatArray:
        """Return the part of the drop that classes of requests for several GPUs cause, in thousandths of a GPU.

        It is (n,) for requests without GPUs, (n, 1) for whole GPUs and (n, d) for shares. All devices of a node count
        as devices of its first model. At least one node has devices.
        """
        c = snapshot.columns
        model, is_whole = c.device_model[:, 0], c.device_milli == MILLI
        whole = np.minimum(is_whole.sum(axis=1), tables.many.shape[2] - 1)
        before = tables.many[model, before_k, whole]
        gain: FloatArray
        if 0 < request.gpus < 1:
            after = tables.many[model[:, None], after_k[:, None], whole[:, None] - is_whole]
            gain = before[:, None] - after
        else:
            gain = before - tables.many[model, after_k, np.maximum(whole - request.gpu_count, 0)]
            gain = gain[:, None] if request.gpus else gain
        return gain


@dataclass(frozen=True, slots=True)
class StrandedShare:
    """A scorer against stranded GPUs: free GPUs for which the node has too few free CPUs or too little memory.

    The score is minus the number of GPUs that the request strands: the mean over typical requests, weighted by GPUs.
    """

    workload: Workload
    name: str = field(default="stranded", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c, (per_cpu, per_byte, share) = snapshot.columns, self.workload.per_gpu()
        if not len(share):
            return None
        n = len(c.gpus_free)
        gpus, cpus, memory = left = np.empty((3, 2 * n))  # before, and after
        gpus[:n], cpus[:n], memory[:n] = c.gpus_free, c.cpus_free, c.memory_free_bytes
        gpus[n:], cpus[n:] = c.gpus_free - request.gpus, c.cpus_free - request.cpus
        memory[n:] = c.memory_free_bytes - request.memory_bytes
        np.maximum(left, _NEARLY_NOTHING, out=left)
        served = cpus[:, None] * per_cpu  # (2n, classes)
        np.minimum(served, memory[:, None] * per_byte, out=served)
        np.minimum(served, gpus[:, None], out=served)
        stranded = gpus - np.einsum("ij,j->i", served, share)
        growth: FloatArray = stranded[:n] - stranded[n:]
        return growth


@dataclass(frozen=True, slots=True)
class Leftover:
    """A scorer of best fit, as in the FGD paper: minus the CPUs and GPUs left, as shares of a large node.

    With ``is_integer``, the score is 1 minus that amount, rounded down to whole percents.
    """

    is_integer: bool = False
    is_for_gpus: bool = False
    """True if nodes without GPUs get 0 for requests without GPUs. Such requests are then packed on GPU nodes only."""
    name = "leftover"
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c = snapshot.columns
        left = ((c.cpus_free - request.cpus) / LARGE_CPUS + (c.gpus_free - request.gpus) / LARGE_GPUS) / 2
        if self.is_for_gpus and not request.gpus:
            left = left * (c.gpus > 0)
        return np.floor((1.0 - left) * 100) / 100 if self.is_integer else -left


@dataclass(frozen=True, slots=True)
class SliverWaste:
    """A scorer of devices for requests below one GPU: minus the waste that the request adds to a device.

    Waste is the free share of a device that, judging by the workload, no later request will use.
    """

    workload: Workload
    name: str = field(default="sliver", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not 0 < request.gpus < 1:
            return None
        waste, free = self.workload.sliver_waste(), snapshot.columns.device_milli
        return waste[free] - waste[np.maximum(free - round(request.gpus * MILLI), 0)]


@dataclass(frozen=True, slots=True)
class ModelPressure:
    """A scorer that lowers a device's score by the demand for its GPU model (`Workload.pressure`)."""

    workload: Workload
    name: str = field(default="pressure", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not request.gpus:
            return None
        pressure = self.workload.pressure(snapshot.models)
        if not pressure.any():
            return None
        return -request.gpus * pressure[snapshot.columns.device_model]


class _Tables(NamedTuple):
    """The tables of `Packing`, with its weights, for the device models of one cluster."""

    fragments: FragmentTables
    cpus: FloatArray  # (typical classes,) the CPUs that suffice for the first k classes
    potential: FloatArray  # the part of a device's score that a kernel changes, by model and free share
    start: IntArray  # (typical classes + 1,) the index in `potential` of the first `Columns.device_cell` of k
    served_by: FloatArray  # (3, classes, 1) GPUs of each typical class served per CPU, byte and GPU
    per_cpu: FloatArray  # () the score of each CPU left over
    per_gpu: FloatArray
    share: float  # the score per GPU for a share of a GPU
    whole: float  # the score per GPU for whole GPUs: takes the sliver part of `potential` back


@dataclass(frozen=True, slots=True)
class Packing:
    """A scorer that combines the five scorers above in one pass, in half the time. Explanations use ``parts``."""

    workload: Workload
    fragmentation: float
    stranded: float
    leftover: float
    sliver: float
    pressure: float
    name: str = field(default="packing", init=False)
    _latest: list[tuple[tuple[str, ...], _Tables]] = field(
        default_factory=list, init=False, compare=False, repr=False
    )
    needs_metrics = False

    @property
    def parts(self) -> tuple[tuple[Scorer, float], ...]:
        return (
            (FragmentationGradient(self.workload), self.fragmentation),
            (StrandedShare(self.workload), self.stranded),
            (Leftover(is_for_gpus=True), self.leftover),
            (SliverWaste(self.workload), self.sliver),
            (ModelPressure(self.workload), self.pressure),
        )

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c, n = snapshot.columns, len(snapshot)
        taken, units, milli = _count_taken(request.cpus, request.memory_bytes, request.gpus)
        tables, cpus, potential, start, served_by, per_cpu, per_gpu, share, whole = self._tables(
            snapshot.models
        )
        left = np.empty((3, 2, n))  # CPUs, memory and GPUs; before, and after
        np.subtract(c.room.T[:3, None], taken, out=left)
        node: FloatArray = left[0, 1] * per_cpu
        node += left[2, 1] * per_gpu
        if not units:
            node *= c.gpus > 0
        k = cpus.searchsorted(left[0], side="right")
        np.maximum(left, _NEARLY_NOTHING, out=left)
        served = np.minimum.reduce(served_by * left.reshape(3, 1, 2 * n), axis=0)  # (classes, 2n)
        worth = np.add.reduce(served, axis=0).reshape(2, n)
        cells = start.take(k)[:, :, None] + c.device_cell
        per_device = potential.take(cells)
        worth -= np.add.reduce(per_device, axis=2)
        node += worth[1]
        node -= worth[0]
        score = node
        if units:
            node += request.gpus * (share if request.gpus < 1 else whole)
            after = cells[1]
            after -= milli  # undefined for devices that do not fit
            score = per_device[1] - potential.take(after)
            if units > 1:
                score *= units
            score += node[:, None]
        if tables.has_many and c.device_model.shape[1]:
            several = FragmentationGradient.several(request, snapshot, tables, k[0], k[1])
            several *= self.fragmentation / MILLI
            score += several
        return score

    def _tables(self, models: tuple[str, ...]) -> _Tables:
        """Return the tables for these models. The latest tables are kept, as a cluster's models seldom change."""
        latest = self._latest[0] if self._latest else None
        if latest is None or latest[0] is not models:
            tables, waste = self.workload.fragments(models), self.workload.sliver_waste()
            scarce = self.workload.pressure(models)[:, None, None] * (np.arange(MILLI + 1) / MILLI)
            worth = self.fragmentation / MILLI * tables.device + self.sliver * waste - self.pressure * scarce
            worth = np.concatenate([worth[:, :, :1], worth], axis=2)  # -1 thousandth counts as 0
            potential = np.roll(worth, 1, axis=0).transpose(1, 0, 2)  # "no device" moves to the front
            per_cpu, per_byte, share = self.workload.per_gpu()
            built = _Tables(
                tables,
                tables.cpus - 1e-6,
                potential.reshape(-1),
                np.arange(len(potential)) * potential[0].size,
                self.stranded * np.stack([per_cpu * share, per_byte * share, share])[:, :, None],
                np.array(-0.5 * self.leftover / LARGE_CPUS),
                np.array(-0.5 * self.leftover / LARGE_GPUS),
                self.stranded,
                self.stranded - self.sliver * float(waste[MILLI]),
            )
            latest = models, built
            self._latest[:] = [latest]
        return latest[1]
