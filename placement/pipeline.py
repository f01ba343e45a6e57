"""A policy made of filters and scorers.

    snapshot → filters → weighted sum of scores → best node, best devices on it

Equal scores (to 9 decimals) go to the smallest node id, and on it to the fullest device that fits, then to the
first, so that a decision depends on the request and the snapshot alone. What is scored once is kept per class of
requests, and only nodes that changed since are scored again (`kept`); what a decision rests on is worked out when
somebody looks (`grounds`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from roost.placement.engine.class_scores import Rating, passed, weighted
from roost.placement.engine.score_cache import Kept, Rated, unrated

from .decision import Decision, Placement
from .explanation import Grounds
from .filters import HasCpus, HasGpus, HasLabels, HasMemory, HasResources, NotDraining, Tolerates
from .lazy import LaterMapping, LaterSequence
from .model import Node, Request
from .scorers import FewKernels, Weighted
from .snapshot import BoolArray, FloatArray, IntArray, Snapshot

NOWHERE: Mapping[str, str] = MappingProxyType({})
"""No nodes to avoid."""


@runtime_checkable
class Policy(Protocol):
    """Chooses a node. Pure: the same request, snapshot and ``avoid`` always give the same decision."""

    @property
    def name(self) -> str: ...

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        """Nodes in ``avoid`` are refused *now*, for the reason that stands there: they have just refused this very
        request, or are kept for another that has waited longer."""
        ...


class Filter(Protocol):
    """Refuses nodes for one reason. A node that it would refuse even if it were empty is refused for ever."""

    @property
    def name(self) -> str: ...

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray | None:
        """(n_nodes,) True where the node will do; None: all will. A node's answer depends on that node alone:
        the snapshot may hold only some of the cluster's nodes."""
        ...

    def reason(self, request: Request, node: Node) -> str:
        """Why this node, which did not pass, is refused, said of the node: ``needs 1 GPU, 0.25 free``."""
        ...


class Ties(Protocol):
    """Chooses among nodes of equal score."""

    def __call__(self, request: Request, snapshot: Snapshot, rows: IntArray) -> int:
        """One of these rows, which are in the order of node ids."""
        ...


DEFAULT_FILTERS: tuple[Filter, ...] = (
    NotDraining(),
    HasLabels(),
    Tolerates(),
    HasGpus(),
    HasMemory(),
    HasCpus(),
    HasResources(),
)
ROUND_ROBIN: Weighted = ((FewKernels(), 1.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The policy that shipped ones are made of, and the easy way to one's own.

    ``scorers`` are pairs of a scorer and its weight; a weight may be negative. When a scorer that needs
    metrics has a say and no node that fits has metrics at most ``stale_after_s`` old, the nodes are ranked by
    ``ROUND_ROBIN`` instead, and the decision says so. When only some have, nothing falls back: the others'
    use counts as unknown, which rates half way between idle and busy. ``ties`` chooses among equals; None
    takes the smallest node id.

    >>> from roost.placement import Node, Request, Snapshot
    >>> mine = Pipeline(name="mine", scorers=((FewKernels(), 1.0),))
    >>> mine.place(Request(), Snapshot.of([Node(id="a", cpus=2), Node(id="b", cpus=4)])).placement.node_id
    'b'
    """

    name: str
    scorers: Weighted
    filters: tuple[Filter, ...] = DEFAULT_FILTERS
    ties: Ties | None = None
    stale_after_s: float = 30.0
    runners_up: int = 9
    kept: Kept = field(default_factory=Kept, init=False, compare=False, repr=False)

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        """O(nodes) to find the best of the kept scores, O(changed nodes · devices) to bring them up to date.

        Raises ``ValueError`` when a part misbehaves.
        """
        avoided: dict[int, str] = {}
        if avoid:
            avoided = {snapshot.row(each): reason for each, reason in avoid.items() if each in snapshot}
        with self.kept.lock:
            scorers, fallback = self.scorers, None
            rated = self._rated(request, snapshot, scorers)
            best = self._best(request, snapshot, rated, avoided)
            if best is not None and self._lacks_metrics(snapshot, rated, avoided):
                fallback = self._why_fallback(snapshot, rated, avoided)
                scorers = ROUND_ROBIN
                rated = self._rated(request, snapshot, scorers)
                best = self._best(request, snapshot, rated, avoided)
            score, device = (
                (0.0, -1) if best is None else (float(rated.totals[best]), int(rated.devices[best]))
            )
        grounds = Grounds(self, scorers, request, snapshot, avoided)
        placement = None
        age_s = math.nan
        if best is not None:
            age_s = float(snapshot.ages[best])
            node = snapshot.stored(best)
            placement = Placement(
                node_id=node.id,
                device_ids=grounds.devices(best, -1) if device < 0 else (node.devices[device].id,),
                score=score,
                terms=LaterMapping(lambda: grounds.terms(best)),
            )
        return Decision(
            request=request,
            policy=self.name,
            placement=placement,
            runners_up=LaterSequence(lambda: grounds.ranked(best)) if best is not None else (),
            refusals=LaterSequence(grounds.refusals),
            refused=LaterSequence(grounds.refused),
            fallback=fallback,
            metrics_age_s=None if math.isnan(age_s) else age_s,
            snapshot_version=snapshot.version,
        )

    def passed(self, request: Request, snapshot: Snapshot) -> list[BoolArray | None]:
        """Each filter's answer, None where it lets all pass."""
        return list(passed(request, snapshot, self.filters))

    def rate(self, request: Request, snapshot: Snapshot, scorers: Weighted) -> Rated:
        """The scores of these nodes, each for itself."""
        rated = unrated(len(snapshot))
        rate = Rating(self.filters, scorers, self.stale_after_s, request)
        rated.update(np.arange(len(snapshot)), rate(snapshot))
        return rated

    def terms(self, request: Request, snapshot: Snapshot, scorers: Weighted) -> dict[str, FloatArray]:
        """Each scorer's weighted say, (n,) or (n, d), on nodes that passed the filters."""
        terms: dict[str, FloatArray] = {}
        for scorer, term in weighted(request, snapshot, scorers, self.stale_after_s):
            terms[scorer.name] = term + terms[scorer.name] if scorer.name in terms else term
        return terms

    def _rated(self, request: Request, snapshot: Snapshot, scorers: Weighted) -> Rated:
        return self.kept.rated(
            (scorers is self.scorers, class_of(request)),
            snapshot,
            snapshot.has_fresh_metrics(self.stale_after_s),
            lambda: Rating(self.filters, scorers, self.stale_after_s, request),
        )

    def _best(
        self, request: Request, snapshot: Snapshot, rated: Rated, avoided: Mapping[int, str]
    ) -> int | None:
        totals = _without(rated.totals, avoided) if avoided else rated.totals
        if not totals.size:
            return None
        best = int(totals.argmax()) if avoided else rated.best()
        if totals[best] == -np.inf:
            return None
        return (
            best
            if self.ties is None
            else self.ties(request, snapshot, np.flatnonzero(totals == totals[best]))
        )

    def _lacks_metrics(self, snapshot: Snapshot, rated: Rated, avoided: Mapping[int, str]) -> bool:
        """Whether metrics matter and no node that fits has fresh ones."""
        if not rated.uses_metrics or snapshot.all_fresh(self.stale_after_s):
            return False
        fresh = snapshot.has_fresh_metrics(self.stale_after_s)
        return not (_without(rated.totals, avoided)[fresh] > -np.inf).any()

    def _why_fallback(self, snapshot: Snapshot, rated: Rated, avoided: Mapping[int, str]) -> str:
        ages = snapshot.ages[_without(rated.totals, avoided) > -np.inf]
        if np.isnan(ages).all():
            return "ranked by round robin, since no node that fits has metrics"
        return (
            f"ranked by round robin, since the newest metrics of nodes that fit are {np.nanmin(ages):.0f} s old "
            f"(stale after {self.stale_after_s:.0f} s)"
        )


def class_of(request: Request) -> Hashable:
    """What filters and scorers may look at: requests of one class are rated alike, whoever asks."""
    return (
        request.cpus,
        request.memory_bytes,
        request.gpus,
        request.gpu_models,
        frozenset(request.labels.items()) if request.labels else None,
        frozenset(request.near.items()) if request.near else None,
        frozenset(request.resources.items()) if request.resources else None,
        request.tolerates,
        request.environment,
    )


def _without(totals: FloatArray, avoided: Mapping[int, str]) -> FloatArray:
    if not avoided:
        return totals
    totals = totals.copy()
    totals[list(avoided)] = -np.inf
    return totals
