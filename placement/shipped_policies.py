"""The shipped policies, and the search for a policy by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from .model import Request
from .pipeline import ROUND_ROBIN, Pipeline, Policy
from .rules.packing import FragmentationGradient, Leftover, ModelPressure, SliverWaste, StrandedShare
from .rules.scorers import (
    Available,
    FewKernels,
    FullestDevice,
    LowLoad,
    Near,
    NotBusy,
    Scorer,
    SpareGpus,
    WarmEnvironment,
    WeightedScorers,
    WithoutGpus,
)
from .rules.workload import Workload
from .tables.snapshot import IntArray, Snapshot

ENTRY_POINTS = "roost.policies"

# Weights a decade apart rank one after the other: a tenth of a resource's range outweighs all later scorers.
_LOAD: tuple[tuple[Scorer, float], ...] = (
    (Available("memory", real=True), 0.1),
    (Available("cpu", real=True), 0.01),
    (LowLoad(), 1.0),
    # measured load lags behind a start, so each kernel counts as 1/4 CPU too
    (FewKernels(best_effort_only=True), 0.25),
)
_WISHES: tuple[tuple[Scorer, float], ...] = ((Near(), 2.0), (WarmEnvironment(), 0.02))
"""Preferred labels outweigh load. A warm environment decides only between nodes with close scores."""
_UNKNOWN = Workload()


def balanced(workload: Workload = _UNKNOWN) -> Policy:
    """Build the default policy.

    It places GPU requests so that most later requests of the workload will fit. It places other requests where the real
    load is lowest, and off GPU nodes if it can. It avoids devices that others keep busy. Without a useful workload, GPU
    requests go where most is available: GPU share, then memory, then CPU.
    """
    first: tuple[tuple[Scorer, float], ...] = (
        (SpareGpus(), 10.0),
        (NotBusy(), 10.0),  # the smallest excess, 0.1, weighs as much as a whole GPU
        *_WISHES,
    )
    if not workload.is_useful:
        return Pipeline(name="balanced", scorers=(*first, (Available("gpu"), 1.0), *_LOAD))
    load = tuple((WithoutGpus(scorer), weight) for scorer, weight in _LOAD)
    return Pipeline(name="balanced", scorers=(*first, *packing(workload), *load))


def packing(workload: Workload) -> WeightedScorers:
    """Return the scorers with which `balanced` packs GPUs.

    The weights were fitted by hand to the trace of `benchmarks/placement.py`. Without ``FragmentationGradient``,
    requests for many GPUs find no node. With less ``Leftover`` or more ``StrandedShare``, small requests take empty
    nodes.
    """
    return (
        (FragmentationGradient(workload), 0.2),
        (StrandedShare(workload), 0.8),
        (Leftover(is_for_gpus=True), 0.15),
        (SliverWaste(workload), 1.2),
        (ModelPressure(workload), 0.8),
    )


def fgd(workload: Workload = _UNKNOWN) -> Policy:
    """Build the policy fragmentation gradient descent (FGD) as published (ATC '23). Scores are integers."""
    return Pipeline(name="fgd", scorers=((FragmentationGradient(workload, is_integer=True), 1.0),))


def best_fit(workload: Workload = _UNKNOWN) -> Policy:
    """Build a policy that takes the node with the least left over, and on it the fullest device."""
    return Pipeline(name="best_fit", scorers=((Leftover(is_integer=True), 1.0), (FullestDevice(), 1e-6)))


def pack(workload: Workload = _UNKNOWN) -> Policy:
    """Build a policy that takes the fullest node and device, by promises alone. Whole nodes and devices stay free."""
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


def spread(workload: Workload = _UNKNOWN) -> Policy:
    """Build a policy that takes the emptiest node and device, by promises.

    For best-effort requests, kernels per CPU count most.
    """
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


def random(workload: Workload = _UNKNOWN) -> Policy:
    """Build a policy that takes any node that fits, for comparisons. The snapshot's version is the seed."""
    return Pipeline(name="random", scorers=(), ties=RandomTies())


def round_robin(workload: Workload = _UNKNOWN) -> Policy:
    """Build a policy that rotates over the nodes in proportion to their size. It needs no metrics and has no state."""
    return Pipeline(name="round_robin", scorers=ROUND_ROBIN)


@dataclass(frozen=True, slots=True)
class RandomTies:
    """A rule that takes any of the equal nodes. A seed and a snapshot's version always give the same node."""

    seed: int = 0

    def __call__(self, request: Request, snapshot: Snapshot, rows: IntArray) -> int:
        return int(rows[np.random.default_rng((self.seed, snapshot.version)).integers(len(rows))])


SHIPPED: Mapping[str, Callable[[Workload], Policy]] = {
    build.__name__: build for build in (balanced, pack, spread, fgd, best_fit, random, round_robin)
}
"""The functions that build the shipped policies from a workload, by the name of the policy."""


class PolicyError(ValueError):
    """An error about a policy that is unknown or unusable. Its text is one sentence that names the policy."""


def get_policy(name_or_object: str | Policy, workload: Workload = _UNKNOWN) -> Policy:
    """Return the policy of that name: a shipped one, an entry point of ``roost.policies``, or ``module:Name``.

    A policy object is returned as it is. Raises ``PolicyError`` if there is no such policy or it cannot be
    used, and any other error that its code raises.

    >>> get_policy("pack").name
    'pack'
    """
    if isinstance(name_or_object, str):
        return build_policy(import_policy(name_or_object), name_or_object, workload)
    return build_policy(name_or_object, repr(name_or_object), workload)


def import_policy(name: str, known: Iterable[str] = ()) -> object:
    """Import the object that a policy's name stands for, for ``build_policy``.

    Raises ``PolicyError``, or an error of the imported module. If the name is unknown, the error lists the shipped, the
    installed and the ``known`` policies.
    """
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
    names = ", ".join([*SHIPPED, *sorted({*others, *known} - SHIPPED.keys())])
    raise PolicyError(f"unknown policy {name!r:.80}; known are {names}.")


def list_installed() -> Mapping[str, EntryPoint]:
    """Return the entry points for policies of installed packages, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def build_policy(source: object, name: str, workload: Workload = _UNKNOWN) -> Policy:
    """Return the policy that an imported object stands for: a policy, a class, or a function of the workload.

    Raises ``PolicyError`` for another object, and the errors of the call.
    """
    if isinstance(source, type):
        source = source()
    elif callable(source) and not isinstance(source, Policy):
        source = source(workload)
    if not isinstance(source, Policy):
        raise PolicyError(f"{name} is not a policy: it needs a name and place(request, snapshot, *, avoid).")
    return source
