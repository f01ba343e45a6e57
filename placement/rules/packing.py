"""The scorers that keep room for later requests (see `benchmarks/placement.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from roost.placement.model import Request
from roost.placement.tables.snapshot import FloatArray, IntArray, Snapshot

from .workload import MILLI, FragmentTables, Workload

LARGE_CPUS, LARGE_GPUS = 128.0, 8.0
"""The size of a large node, which makes CPUs and GPUs comparable: the largest node of the benchmark's trace."""

_NEARLY_NOTHING = np.array(1e-12)
"""A stand-in for 0, because 0 · infinity is not a number."""


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
            gain += self._several(request, snapshot, tables, before_k, after_k)
        if self.is_integer:
            gain = np.floor(100.0 / (1.0 + np.exp(-gain / MILLI))) * (MILLI / 100.0)
        return gain / MILLI

    @staticmethod
    def _several(
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
