"""A policy made of filters, scorers and a choice of devices.

    snapshot → filters (every node gets its reasons) → weighted sum of scores → best node → devices on it

Equal scores (to 9 decimals) go to the smallest node id, so that a decision depends on the request and the
snapshot alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from .decision import Decision, Placement, Refusal
from .filters import HasCpus, HasGpus, HasLabels, HasMemory, NotDraining
from .scorers import FewKernels
from .snapshot import BoolArray, FloatArray, IntArray, Snapshot
from .values import Node, Request

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
    """Refuses nodes for one reason."""

    @property
    def name(self) -> str: ...

    def passes(self, request: Request, snapshot: Snapshot) -> BoolArray:
        """(n_nodes,) True where the node will do. A node's answer depends on that node alone."""
        ...

    def refuse(self, request: Request, node: Node) -> Refusal:
        """Why this node, which did not pass, is refused; called for refused nodes only."""
        ...


class Scorer(Protocol):
    """Rates nodes; higher is better, about 0..1 by custom."""

    @property
    def name(self) -> str: ...

    @property
    def needs_metrics(self) -> bool:
        """Whether the rating means little where real use is unknown."""
        ...

    def score(self, request: Request, snapshot: Snapshot, rows: IntArray) -> FloatArray | None:
        """(len(rows),) finite ratings of these rows, all past the filters; None: no say on such requests.

        A row's score must depend on that row alone, so that only changed rows need be rated again.
        """
        ...


DeviceChoice = Callable[[Request, Node], tuple[str, ...]]
"""Ids of the devices to prefer on a node that passed the filters; as many as ``request.gpu_count``."""


def fullest_device(request: Request, node: Node) -> tuple[str, ...]:
    """Best fit: devices not busy beyond their promises, then the fullest that fits, then the node's order."""
    return _first(request, node, 1.0)


def emptiest_device(request: Request, node: Node) -> tuple[str, ...]:
    """Worst fit: devices not busy beyond their promises, then the emptiest, then the node's order."""
    return _first(request, node, -1.0)


def _first(request: Request, node: Node, sign: float) -> tuple[str, ...]:
    if not request.gpus:
        return ()
    ranked = sorted(node.fitting(request), key=lambda d: (round(d.excess, 9), round(sign * d.free, 9)))
    return tuple(device.id for device in ranked[: request.gpu_count])


DEFAULT_FILTERS: tuple[Filter, ...] = (NotDraining(), HasLabels(), HasGpus(), HasMemory(), HasCpus())
ROUND_ROBIN: tuple[tuple[Scorer, float], ...] = ((FewKernels(), 1.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The policy that shipped ones are made of, and the easy way to one's own.

    ``scorers`` are pairs of a scorer and its weight; a weight may be negative. When a scorer that needs
    metrics has a say and no node that fits has metrics at most ``stale_after_s`` old, the nodes are ranked by
    ``ROUND_ROBIN`` instead, and the decision says so. When only some have, nothing falls back: the others'
    use counts as unknown, which rates half way between idle and busy.

    >>> from roost.placement import Node, Request, Snapshot
    >>> mine = Pipeline(name="mine", scorers=((FewKernels(), 1.0),))
    >>> mine.place(Request(), Snapshot.of([Node(id="a", cpus=2), Node(id="b", cpus=4)])).placement.node_id
    'b'
    """

    name: str
    scorers: tuple[tuple[Scorer, float], ...]
    filters: tuple[Filter, ...] = DEFAULT_FILTERS
    devices: DeviceChoice = fullest_device
    stale_after_s: float = 30.0
    runners_up: int = 9

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        """O(nodes · devices) in numpy, and Python per refused node. ``ValueError`` when a part misbehaves."""
        passed = self._passed(request, snapshot)
        avoided = {snapshot.row(node_id): reason for node_id, reason in avoid.items() if node_id in snapshot}
        fits = np.logical_and.reduce([np.ones(len(snapshot), dtype=bool), *passed])
        fits[list(avoided)] = False
        decision = Decision(
            request=request,
            policy=self.name,
            refusals=self._refusals(request, snapshot, passed, avoided, np.flatnonzero(~fits)),
            snapshot_version=snapshot.version,
        )
        rows = np.flatnonzero(fits)
        if not rows.size:
            return decision
        terms, fallback = self._rated(request, snapshot, rows)
        ranked = self._ranked(request, snapshot, rows, terms)
        return replace(
            decision,
            placement=ranked[0],
            runners_up=ranked[1:],
            fallback=fallback,
            metrics_age_s=snapshot.node(ranked[0].node_id).metrics_age_s,
        )

    def _passed(self, request: Request, snapshot: Snapshot) -> list[BoolArray]:
        passed = [rule.passes(request, snapshot) for rule in self.filters]
        for rule, mask in zip(self.filters, passed, strict=True):
            if mask.shape != (len(snapshot),):
                raise ValueError(
                    f"filter {rule.name!r} must give one truth value per node; mend it or leave it out."
                )
        return passed

    def _rated(
        self, request: Request, snapshot: Snapshot, rows: IntArray
    ) -> tuple[dict[str, FloatArray], str | None]:
        """Each scorer's weighted term on these rows, and why round robin's are given instead, if they are."""
        known = snapshot.without_stale_metrics(self.stale_after_s)
        terms = _terms(self.scorers, request, known, rows)
        uses_metrics = any(scorer.needs_metrics and scorer.name in terms for scorer, _ in self.scorers)
        if not uses_metrics or snapshot.has_fresh_metrics(self.stale_after_s)[rows].any():
            return terms, None
        return _terms(ROUND_ROBIN, request, known, rows), _why_fallback(snapshot, rows, self.stale_after_s)

    def _ranked(
        self, request: Request, snapshot: Snapshot, rows: IntArray, terms: dict[str, FloatArray]
    ) -> tuple[Placement, ...]:
        """The best rows with their devices, best first."""
        total = np.round(sum(terms.values(), np.zeros(len(rows))), 9)
        is_fresh = snapshot.has_fresh_metrics(self.stale_after_s)
        ranked = []
        for i in np.argsort(-total, kind="stable")[: 1 + self.runners_up]:
            node = snapshot.node(snapshot.nodes[rows[i]])
            devices = self.devices(request, node if is_fresh[rows[i]] else node.without_metrics())
            weighted = {name: float(values[i]) for name, values in terms.items()}
            ranked.append(
                Placement(node_id=node.id, device_ids=devices, score=float(total[i]), terms=weighted)
            )
        return tuple(ranked)

    def _refusals(
        self,
        request: Request,
        snapshot: Snapshot,
        passed: Sequence[BoolArray],
        avoided: Mapping[int, str],
        rows: IntArray,
    ) -> tuple[Refusal, ...]:
        refusals = []
        for row in rows:
            node = snapshot.node(snapshot.nodes[row])
            refusals += [
                rule.refuse(request, node)
                for rule, mask in zip(self.filters, passed, strict=True)
                if not mask[row]
            ]
            if row in avoided:
                refusals.append(Refusal(node_id=node.id, filter="avoid", reason=avoided[row], when="now"))
        return tuple(refusals)


def _terms(
    scorers: Sequence[tuple[Scorer, float]], request: Request, snapshot: Snapshot, rows: IntArray
) -> dict[str, FloatArray]:
    terms: dict[str, FloatArray] = {}
    for scorer, weight in scorers:
        scores = scorer.score(request, snapshot, rows)
        if scores is None:
            continue
        if scores.shape != rows.shape or not np.isfinite(scores).all():
            raise ValueError(
                f"scorer {scorer.name!r} must give one finite number per node; mend it or leave it out."
            )
        terms[scorer.name] = terms.get(scorer.name, 0.0) + weight * scores + 0.0  # no -0.0
    return terms


def _why_fallback(snapshot: Snapshot, rows: IntArray, stale_after_s: float) -> str:
    ages = snapshot.columns.metrics_age_s[rows]
    if np.isnan(ages).all():
        return "ranked by round robin, since no node that fits has metrics"
    return (
        f"ranked by round robin, since the newest metrics of nodes that fit are {np.nanmin(ages):.0f} s old "
        f"(stale after {stale_after_s:.0f} s)"
    )
