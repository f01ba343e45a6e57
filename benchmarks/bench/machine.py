"""How fast and how quiet the machine is, and thus how far a benchmark's figures can be trusted."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

_TOUCHED_BYTES = 15 << 20
"""About the amount of memory that a forked kernel touches at its start."""
_SPINS, _SPIN = 30, 100_000
NOISY = 0.25
"""A machine whose speed varies more than this, as a share of the median, is not quiet."""
BUSY = 0.2
"""A machine is not quiet if other programs use more than this share of all cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The machine at one moment."""

    fault_us: float
    """The time of the first touch of a page of memory."""
    spin_ms: float
    """The median time of a fixed piece of work."""
    spin_spread: float
    """The spread of the middle half of these times, as a share of the median."""
    busy: float
    """The share of all cores that other programs use."""

    def to_dict(self) -> Mapping[str, float]:
        return {name: round(getattr(self, name), 4) for name in self.__slots__}


def measure() -> Condition:
    """Return the condition of the machine, measured for about half a second."""
    psutil.cpu_times_percent()
    own = sum(os.times()[:2])
    began = time.perf_counter()
    faults = [time_fault() for _ in range(3)]
    spins = sorted(_time_spin() for _ in range(_SPINS))
    wall_s = time.perf_counter() - began
    used = 1 - psutil.cpu_times_percent().idle / 100
    mine = (sum(os.times()[:2]) - own) / wall_s / (psutil.cpu_count() or 1)
    median = statistics.median(spins)
    return Condition(
        fault_us=min(faults),
        spin_ms=median,
        spin_spread=(spins[_SPINS * 3 // 4] - spins[_SPINS // 4]) / median,
        busy=max(0.0, used - mine),
    )


def time_fault() -> float:
    """Return how long the first touch of a page of memory takes, in microseconds.

    A repeated call gets the same memory again, which the machine has by then.
    """
    with mmap.mmap(-1, _TOUCHED_BYTES) as memory:
        began = time.perf_counter()
        for offset in range(0, _TOUCHED_BYTES, mmap.PAGESIZE):
            memory[offset] = 1
        return (time.perf_counter() - began) * 1e6 / (_TOUCHED_BYTES // mmap.PAGESIZE)


def _time_spin() -> float:
    began = time.perf_counter()
    sum(range(_SPIN))
    return (time.perf_counter() - began) * 1e3


def find_doubts(before: Condition, after: Condition) -> list[str]:
    """Return a sentence for each reason not to trust figures measured between these two moments."""
    doubts = []
    if max(before.busy, after.busy) > BUSY:
        share = max(before.busy, after.busy)
        doubts.append(f"Other programs used {share:.0%} of the processors: repeat this on a quiet machine.")
    if max(before.spin_spread, after.spin_spread) > NOISY:
        doubts.append(
            "The machine's speed varied by more than a quarter within half a second: trust ratios only."
        )
    if after.spin_ms > before.spin_ms * (1 + NOISY) or before.spin_ms > after.spin_ms * (1 + NOISY):
        doubts.append(
            f"The machine's speed changed during the run ({before.spin_ms:.2f} → {after.spin_ms:.2f} ms for the same "
            "work): trust ratios only."
        )
    return [*doubts, *find_fault_doubts(before.fault_us, after.fault_us)]


def find_fault_doubts(before_us: float, after_us: float) -> list[str]:
    """Return a sentence if a page fault has become much slower or faster between the first and the last start."""
    if before_us / 2 <= after_us <= before_us * 2:
        return []
    changed = f"The cost of a page fault changed from {before_us:.1f} to {after_us:.1f} µs"
    return [f"{changed}: do not compare the starts of early kernels with those of late ones."]
