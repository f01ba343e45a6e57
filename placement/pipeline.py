"""A policy made of filters and scorers.

    snapshot → filters → weighted sum of scores → best node, best devices on it

Equal scores (to 9 decimals) go to the smallest node id. On the node they go to the fullest device that fits, then to
the first. A decision therefore depends on the request and the snapshot alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from .decision import Decision, Placement
from .engine.class_scores import ClassScorer, weigh_scores
from .engine.score_cache import ScoreCache, Scores
from .explanation import Explanation
from .model import Request
from .rules.filters import (
    Filter,
    HasCpus,
    HasGpus,
    HasLabels,
    HasMemory,
    HasResources,
    NotDraining,
    Tolerates,
)
from .rules.scorers import FewKernels, WeightedScorers
from .tables.snapshot import FloatArray, IntArray, Snapshot

NOWHERE: Mapping[str, str] = MappingProxyType({})
"""No nodes to avoid."""


@runtime_checkable
class Policy(Protocol):
    """A rule that chooses a node. It is pure: the same arguments always give the same decision.

    >>> from roost.placement import get_policy
    >>> isinstance(get_policy("pack"), Policy)
    True
    """

    @property
    def name(self) -> str: ...

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        """Return the decision for a request.

        ``avoid`` maps node ids to reasons. These nodes are refused *now*: either they have just refused this request,
        or they are reserved for a kernel that has waited longer.
        """
        ...


class Ties(Protocol):
    """A rule that chooses among nodes of equal score.

    >>> from roost.placement import Node, Request, Snapshot
    >>> last = Pipeline(name="last", scorers=(), ties=lambda request, snapshot, rows: int(rows[-1]))
    >>> last.place(Request(), Snapshot.of([Node(id="a"), Node(id="b")])).placement.node_id
    'b'
    """

    def __call__(self, request: Request, snapshot: Snapshot, rows: IntArray) -> int:
        """Return one of ``rows``: the rows of the nodes of equal score, in the order of their ids."""
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
ROUND_ROBIN: WeightedScorers = ((FewKernels(), 1.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A policy of filters and weighted scorers. The shipped policies are pipelines.

    A scorer that needs metrics cannot rank without them. If no node that fits has fresh metrics, ``ROUND_ROBIN`` ranks
    the nodes and the decision says so. If only some nodes have fresh metrics, the use of the other nodes counts as
    unknown: half way between idle and busy.

    >>> from roost.placement import Node, Request, Snapshot
    >>> mine = Pipeline(name="mine", scorers=((FewKernels(), 1.0),))
    >>> mine.place(Request(), Snapshot.of([Node(id="a", cpus=2), Node(id="b", cpus=4)])).placement.node_id
    'b'
    """

    name: str
    """The policy's name."""
    scorers: WeightedScorers
    """Pairs of a scorer and its weight, which may be negative."""
    filters: tuple[Filter, ...] = DEFAULT_FILTERS
    ties: Ties | None = None
    """A function that chooses among equal nodes; None takes the smallest node id."""
    stale_after_s: float = 30.0
    """Metrics are fresh if they are at most this old."""
    runners_up: int = 9
    """At most this many runners-up are in a decision."""
    cache: ScoreCache = field(default_factory=ScoreCache, init=False, compare=False, repr=False)

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        """Return the decision for a request, in O(nodes). Scores are updated in O(changed nodes · devices).

        Raises ``ValueError`` if a filter or a scorer returns a wrong array.
        """
        avoided: dict[int, str] = {}
        if avoid:
            avoided = {snapshot.row(each): reason for each, reason in avoid.items() if each in snapshot}
        scorers, fallback = self.scorers, None
        with self.cache.lock:  # until the best row is read, since the scores change in place
            scores, totals, best = self._rank(request, snapshot, scorers, avoided)
            if best is not None and self._lacks_metrics(snapshot, scores, totals):
                fallback = self._explain_fallback(snapshot.ages[totals > -np.inf])
                scorers = ROUND_ROBIN
                scores, totals, best = self._rank(request, snapshot, scorers, avoided)
            if best is not None:
                score, device = float(totals[best]), int(scores.devices[best])
        explanation = Explanation(self, scorers, request, snapshot, best, avoided)
        placement, age_s = None, math.nan
        if best is not None:
            age_s, node = float(snapshot.ages[best]), snapshot.raw(best)
            ids = explanation.choose_devices(best, -1) if device < 0 else (node.devices[device].id,)
            placement = Placement.explained_by(explanation, node_id=node.id, device_ids=ids, score=score)
        return Decision.explained_by(
            explanation,
            request=request,
            policy=self.name,
            placement=placement,
            fallback=fallback,
            metrics_age_s=None if math.isnan(age_s) else age_s,
            snapshot_version=snapshot.version,
            new_node=None,
            type_refusals=(),
            may_grow=False,
        )

    def score(self, request: Request, snapshot: Snapshot, scorers: WeightedScorers) -> Scores:
        """Return the scores of all nodes, in O(nodes). Right after ``place``, they are still in the cache."""
        key = scorers is self.scorers, class_key(request)
        found = self.cache.find(key, snapshot, snapshot.has_fresh_metrics(self.stale_after_s))
        if found is not None:
            return found
        score_nodes = ClassScorer(self.filters, scorers, self.stale_after_s, request)
        return Scores.of(snapshot, snapshot.columns, score_nodes)

    def terms(self, request: Request, snapshot: Snapshot, scorers: WeightedScorers) -> dict[str, FloatArray]:
        """Return the weighted scores, (n,) or (n, d), by scorer name.

        All nodes must have passed the filters.
        """
        terms: dict[str, FloatArray] = {}
        for scorer, term in weigh_scores(request, snapshot, scorers, self.stale_after_s):
            terms[scorer.name] = term + terms[scorer.name] if scorer.name in terms else term
        return terms

    def _rank(
        self, request: Request, snapshot: Snapshot, scorers: WeightedScorers, avoided: Mapping[int, str]
    ) -> tuple[Scores, FloatArray, int | None]:
        """Return the scores, the totals, and the best node's row (None if no node fits).

        The totals of avoided nodes are -inf.
        """
        scores = self.cache.update(
            (scorers is self.scorers, class_key(request)),
            snapshot,
            snapshot.has_fresh_metrics(self.stale_after_s),
            lambda: ClassScorer(self.filters, scorers, self.stale_after_s, request),
        )
        totals = scores.totals
        if not totals.size:
            return scores, totals, None
        if avoided:
            totals = totals.copy()
            totals[list(avoided)] = -np.inf
        best = int(totals.argmax()) if avoided else scores.find_best()
        if totals[best] == -np.inf:
            return scores, totals, None
        if self.ties is not None:
            best = self.ties(request, snapshot, np.flatnonzero(totals == totals[best]))
        return scores, totals, best

    def _lacks_metrics(self, snapshot: Snapshot, scores: Scores, totals: FloatArray) -> bool:
        """True if a scorer needs metrics and no node that fits has fresh metrics."""
        if not scores.uses_metrics or snapshot.all_fresh(self.stale_after_s):
            return False
        return not (totals[snapshot.has_fresh_metrics(self.stale_after_s)] > -np.inf).any()

    def _explain_fallback(self, ages: FloatArray) -> str:
        if np.isnan(ages).all():
            return "ranked by round robin, since no node that fits has metrics"
        return (
            f"ranked by round robin, since the newest metrics of nodes that fit are {np.nanmin(ages):.0f} s old "
            f"(stale after {self.stale_after_s:.0f} s)"
        )


def class_key(request: Request) -> Hashable:
    """Return the fields that filters and scorers may look at. Requests with equal keys share their scores."""
    return (
        request.cpus,
        request.memory_bytes,
        request.gpus,
        request.gpu_models,
        request.gpu_memory_bytes,
        request.visible_gpus,
        frozenset(request.labels.items()) if request.labels else None,
        frozenset(request.near.items()) if request.near else None,
        frozenset(request.resources.items()) if request.resources else None,
        request.tolerates,
        request.environment,
    )
