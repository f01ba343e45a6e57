"""The shipped policies, and how a policy is found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from .model import Request
from .packing import FragmentationGradient, Leftover, Packing
from .pipeline import ROUND_ROBIN, Pipeline, Policy
from .scorers import (
    Available,
    FewKernels,
    FullestDevice,
    LowLoad,
    Near,
    NotBusy,
    Scorer,
    SpareGpus,
    Warm,
    WithoutGpus,
)
from .snapshot import IntArray, Snapshot
from .workload import Workload

ENTRY_POINTS = "roost.policies"

# Weights a decade apart make an order: a tenth of a resource's range outweighs all that comes after it.
_LOAD: tuple[tuple[Scorer, float], ...] = (
    (Available("memory", real=True), 0.1),
    (Available("cpu", real=True), 0.01),
    (LowLoad(), 1.0),
    # load follows a start late: each kernel counts as 1/4 CPU beside it
    (FewKernels(best_effort_only=True), 0.25),
)
_WISHES: tuple[tuple[Scorer, float], ...] = ((Near(), 2.0), (Warm(), 0.02))
"""A wish for labels outweighs load, a start of milliseconds only settles what is close."""
_NOBODY = Workload()


def balanced(workload: Workload = _NOBODY) -> Policy:
    """The default. GPUs so that most of the requests to come will fit, by what is known of them; CPU-only kernels
    where real load is lowest, off GPU nodes if they can; never on devices that others keep busy.

    While the workload knows too little, GPU requests go where most is available: GPU share, then memory, then CPU.
    """
    first: tuple[tuple[Scorer, float], ...] = (
        (SpareGpus(), 10.0),
        (NotBusy(), 10.0),  # the least excess that counts, 0.1, weighs as much as a whole GPU
        *_WISHES,
    )
    if not workload.is_useful:
        return Pipeline(name="balanced", scorers=(*first, (Available("gpu"), 1.0), *_LOAD))
    load = tuple((WithoutGpus(scorer), weight) for scorer, weight in _LOAD)
    return Pipeline(name="balanced", scorers=(*first, (packing(workload), 1.0), *load))


def packing(workload: Workload) -> Packing:
    """What makes `balanced` pack GPUs. In GPUs, so that the weights compare: a GPU stranded counts as 0.8 of one lost.

    Fitted by hand to the trace of `benchmarks/placement.py`, filled up and with departures. None is sharp; without
    the first term requests for many GPUs find no node, and less of the third, or more of the second, breaks up
    empty nodes.
    """
    return Packing(workload, fragmentation=0.2, stranded=0.8, leftover=0.15, sliver=1.2, pressure=0.8)


def fgd(workload: Workload = _NOBODY) -> Policy:
    """Fragmentation gradient descent as published (ATC '23): integer scores, ties to the smallest node id."""
    return Pipeline(name="fgd", scorers=((FragmentationGradient(workload, is_integer=True), 1.0),))


def best_fit(workload: Workload = _NOBODY) -> Policy:
    """The node that has least left over, CPUs and GPUs weighed alike, and on it the fullest device."""
    return Pipeline(name="best_fit", scorers=((Leftover(is_integer=True), 1.0), (FullestDevice(), 1e-6)))


def pack(workload: Workload = _NOBODY) -> Policy:
    """The fullest node, and on it the fullest device: whole nodes and devices stay free. By promises alone."""
    return Pipeline(
        name="pack",
        scorers=(
            (SpareGpus(), 10.0),
            (FullestDevice(), 10.0),
            (Available("gpu"), -1.0),
            (Available("memory"), -0.1),
            (Available("cpu"), -0.01),
        ),
    )


def spread(workload: Workload = _NOBODY) -> Policy:
    """The emptiest node, and on it the emptiest device. By promises alone; best effort by kernels per CPU."""
    return Pipeline(
        name="spread",
        scorers=(
            (Available("gpu"), 1.0),
            (Available("memory"), 0.1),
            (Available("cpu"), 0.01),
            (FullestDevice(is_emptiest=True), 0.001),
            (FewKernels(best_effort_only=True), 1.0),
        ),
    )


def random(workload: Workload = _NOBODY) -> Policy:
    """Any node that fits, by the snapshot's version: for comparisons."""
    return Pipeline(name="random", scorers=(), ties=RandomTies())


def round_robin(workload: Workload = _NOBODY) -> Policy:
    """Rotates over the nodes that fit, in proportion to their size. Needs no metrics and keeps no state."""
    return Pipeline(name="round_robin", scorers=ROUND_ROBIN)


@dataclass(frozen=True, slots=True)
class RandomTies:
    """Any of the equals, evenly, always the same for a seed and a snapshot's version."""

    seed: int = 0

    def __call__(self, request: Request, snapshot: Snapshot, rows: IntArray) -> int:
        return int(rows[np.random.default_rng((self.seed, snapshot.version)).integers(len(rows))])


SHIPPED: Mapping[str, Callable[[Workload], Policy]] = {
    make.__name__: make for make in (balanced, pack, spread, fgd, best_fit, random, round_robin)
}
"""By name: what makes the policy from what is known of the workload."""


class PolicyError(ValueError):
    """There is no such policy, or what has that name is none; the text is one sentence that names it."""


def get_policy(name_or_object: str | Policy, workload: Workload = _NOBODY) -> Policy:
    """The policy of that name: shipped, an entry point of ``roost.policies``, or ``module:Name``.

    A policy object is given back as it is. Raises ``PolicyError`` that lists the known names.
    """
    if isinstance(name_or_object, str):
        return build_policy(import_policy(name_or_object), name_or_object, workload)
    return build_policy(name_or_object, repr(name_or_object), workload)


def import_policy(name: str) -> object:
    """What that name stands for, to be ``made`` a policy; raises ``PolicyError``, or what importing it raises."""
    if name in SHIPPED:
        return SHIPPED[name]
    others = list_installed()
    try:
        if name in others:
            return others[name].load()
        if ":" in name:
            module, _, attribute = name.partition(":")
            return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PolicyError(f"policy {name!r} cannot be loaded: {error}.") from error
    known = ", ".join([*SHIPPED, *sorted(others.keys() - SHIPPED.keys())])
    raise PolicyError(
        f"unknown policy {name!r}; known are {known}, or one that the operator's configuration names."
    )


def list_installed() -> Mapping[str, EntryPoint]:
    """The policies of installed packages, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def build_policy(found: object, name: str, workload: Workload = _NOBODY) -> Policy:
    """The policy that is found: an object as it is, a class without required arguments called, or a function called
    with the workload, as the shipped ones are. Raises ``PolicyError`` for anything else, or what the call raises."""
    if isinstance(found, type):
        found = found()
    elif callable(found) and not isinstance(found, Policy):
        found = found(workload)
    if not isinstance(found, Policy):
        raise PolicyError(f"{name} is not a policy: it needs a name and place(request, snapshot, *, avoid).")
    return found
