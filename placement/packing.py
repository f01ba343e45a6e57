"""Scorers that look at what a placement leaves for the requests to come. All in GPUs: 1 is a whole one.

The formulas are those of the blend that beats fragmentation gradient descent on the trace it was published with
(`benchmarks/placement.py`); each is also of use alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .profile import MILLI, Profile
from .snapshot import FloatArray, IntArray, Snapshot
from .values import Request

LARGE_CPUS, LARGE_GPUS = 128.0, 8.0
"""What counts as a large node, to weigh CPUs and GPUs against each other (the largest of the trace)."""


@dataclass(frozen=True, slots=True)
class FragmentationGradient:
    """How much the placement lowers the expected fragmentation of the node: F before − F after.

    Weng et al., "Beware of Fragmentation" (ATC '23), equation 4, on the profile's typical classes. Per device for a
    share, per node otherwise. ``is_integer``: as the authors' scheduler computes it, whole numbers from 0 to 100 of
    a sigmoid, so that many nodes tie.
    """

    profile: Profile
    is_integer: bool = False
    name: str = field(default="fragmentation", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c = snapshot.columns
        tables = self.profile.fragments(snapshot.models)
        before_k, after_k = tables.k(c.cpus_free), tables.k(c.cpus_free - request.cpus)
        classes = tables.device.shape[1]
        base = c.device_model % len(tables.device) * classes  # -1, no device, is the last model
        model = base[:, 0] if base.shape[1] else np.full(len(snapshot), (len(tables.device) - 1) * classes)
        whole = np.minimum((c.device_milli == MILLI).sum(axis=1), 64)
        device, many = tables.device.reshape(-1), tables.many.reshape(-1)

        def left(k: IntArray, milli: IntArray) -> FloatArray:
            found: FloatArray = device.take((base + k[:, None]) * (MILLI + 1) + milli)
            return found

        def several(k: IntArray, whole: IntArray) -> FloatArray:
            found: FloatArray = many.take((model + k).reshape(-1, *[1] * (whole.ndim - 1)) * 65 + whole)
            return found

        gain: FloatArray
        before = left(before_k, c.device_milli).sum(axis=1) + several(before_k, whole)
        after = left(after_k, c.device_milli)
        if 0 < request.gpus < 1:
            share = round(request.gpus * MILLI)
            taken = left(after_k, np.maximum(c.device_milli - share, 0)) - after
            still = several(after_k, whole[:, None] - (c.device_milli == MILLI))
            gain = before[:, None] - (after.sum(axis=1)[:, None] + taken + still)
        else:
            count = request.gpu_count
            full = device.take((model + after_k) * (MILLI + 1) + MILLI)
            still = several(after_k, np.maximum(whole - count, 0))
            gain = before - (after.sum(axis=1) - count * full + still)
        if self.is_integer:
            gain = np.floor(100.0 / (1.0 + np.exp(-gain / MILLI))) * (MILLI / 100.0)
        return gain / MILLI


@dataclass(frozen=True, slots=True)
class StrandedShare:
    """Minus the growth of the GPUs for which the node's CPUs or memory do not suffice.

    What is stranded is the mean, over the typical requests, of max(0, GPUs left − as many of these requests' GPUs as
    the CPUs and the memory that are left could serve).
    """

    profile: Profile
    name: str = field(default="stranded", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        c = snapshot.columns
        if not len(self.profile.per_gpu()[0]):
            return None
        memory = c.memory_free_bytes
        before = self._stranded(c.gpus_free, c.cpus_free, memory)
        after = self._stranded(
            c.gpus_free - request.gpus, c.cpus_free - request.cpus, memory - request.memory_bytes
        )
        return before - after

    def _stranded(self, gpus: FloatArray, cpus: FloatArray, memory: FloatArray | IntArray) -> FloatArray:
        per_cpu, per_byte, share = self.profile.per_gpu()
        # a little above 0, since 0 · infinity is no number
        served = np.maximum(cpus, 1e-9)[:, None] * per_cpu
        np.minimum(served, np.maximum(memory, 1)[:, None] * per_byte, out=served)
        np.subtract(np.maximum(gpus, 0.0)[:, None], served, out=served)
        stranded: FloatArray = np.maximum(served, 0.0, out=served) @ share
        return stranded


@dataclass(frozen=True, slots=True)
class Leftover:
    """Minus what stays free, CPUs and GPUs weighed alike: best fit, as in the authors' comparison of FGD."""

    is_integer: bool = False
    is_for_gpus: bool = False
    """Says nothing about nodes without GPUs: there CPUs may well be spread."""
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
    """Per device, for a share of a GPU: minus the growth of what is expected to stay unused of the device."""

    profile: Profile
    name: str = field(default="sliver", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not 0 < request.gpus < 1:
            return None
        waste, free = self.profile.sliver_waste(), snapshot.columns.device_milli
        return waste[free] - waste[np.maximum(free - round(request.gpus * MILLI), 0)]


@dataclass(frozen=True, slots=True)
class ModelPressure:
    """Per device: minus what the request takes of a model that others insist on, by how scarce that model is."""

    profile: Profile
    name: str = field(default="pressure", init=False)
    needs_metrics = False

    def score(self, request: Request, snapshot: Snapshot) -> FloatArray | None:
        if not request.gpus:
            return None
        pressure = self.profile.pressure(snapshot.models)
        if not pressure.any():
            return None
        return -request.gpus * pressure[snapshot.columns.device_model]
