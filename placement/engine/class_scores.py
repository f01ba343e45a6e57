"""How nodes are rated for one class of requests. What is the same for all nodes is found out once, and kept with the
class's scores: which filters and scorers have a say at all, and which amounts must be there.

    passes, score     what a filter and a scorer must have: asked of each part that is rated
    applies(request)  what either may have: False where it says nothing on such requests, and need not be asked
    least(request)    what a filter may have: amounts that must be free, `passes` for all such filters in one comparison

The two that may be there count only in the class that defines `passes` or `score`, as one derived from it may say more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from roost.placement.filters import find_fitting_devices
from roost.placement.model import Request
from roost.placement.scorers import Scorer, Weighted
from roost.placement.snapshot import BoolArray, FloatArray, IntArray, Snapshot

from .columns import ROOM
from .score_cache import Rated

if TYPE_CHECKING:
    from roost.placement.pipeline import Filter

# As arrays, which numpy need not make of them in each operation.
_DECIMALS = np.array(1e9)
"""Sums of scores are equal when they are to 9 decimals."""
_ZERO, _INFINITE, _REFUSED = np.array(0.0), np.array(np.inf), np.array(-np.inf)


class Rating:
    """Rates nodes for requests of one class, each node for itself. Called with a snapshot or a part of one."""

    __slots__ = ("_filters", "_least", "_made", "_request", "_scorers", "_stale_after_s")

    def __init__(
        self, filters: tuple[Filter, ...], scorers: Weighted, stale_after_s: float, request: Request
    ) -> None:
        self._request, self._stale_after_s = request, stale_after_s
        self._scorers = tuple(pair for pair in scorers if _applies(pair[0], "score", request))
        self._filters: list[Filter] = []
        least: dict[str, float] = {}
        for rule in filters:
            amounts = _optional(rule, "passes", "least")
            asked = amounts(request) if amounts else None
            if asked is not None:
                least.update(asked)
            elif _applies(rule, "passes", request):
                self._filters.append(rule)
        self._least = least
        self._made: tuple[FloatArray, IntArray, int] | None = None

    def __call__(self, snapshot: Snapshot) -> Rated:
        """The ratings of the nodes that pass all filters; ``rows`` says which, where not all do."""
        fits, devices = self._fitting(snapshot)
        rows: IntArray | None = None
        if fits is not None:
            rows = fits.nonzero()[0]
            if not rows.size:
                return Rated(np.empty(0), rows, False, rows=rows)
            if rows.size == len(snapshot):
                rows = None
            else:
                snapshot = snapshot.part(rows, snapshot.columns.part(rows))
                devices = None if devices is None else devices.take(rows, axis=0)
        return self._rated(snapshot, devices, rows)

    def _fitting(self, snapshot: Snapshot) -> tuple[BoolArray | None, BoolArray | None]:
        """(n,) where all filters let the node pass; (n, d) the devices that fit. None: all do; not known yet."""
        fits: BoolArray | None = None
        devices: BoolArray | None = None
        request = self._request
        if self._least:
            room = snapshot.columns.room
            least, points, enough = self._amounts(room.shape[1] - len(ROOM))
            has = room[:, : len(least)] >= least
            if request.gpu_models:
                has[:, len(ROOM) :] &= snapshot.accepted_devices(request)
            fits = has.dot(points) >= enough
            if len(least) > len(ROOM):
                devices = has[:, len(ROOM) :]
        for mask in passed(request, snapshot, self._filters) if self._filters else ():
            if mask is not None:
                fits = mask if fits is None else fits & mask
        return fits, devices

    def _amounts(self, d: int) -> tuple[FloatArray, IntArray, int]:
        """What `Columns.room` must at least be, the points for each that is, and how many points are enough: all of
        the node's amounts, which count more than all d devices do, and as many devices as are asked for."""
        is_for_devices = "device_free" in self._least
        width = len(ROOM) + d * is_for_devices
        if self._made is None or len(self._made[0]) != width:
            least = np.full(width, self._least.get("device_free", -np.inf))
            least[: len(ROOM)] = [self._least.get(name, -np.inf) for name in ROOM]
            points = np.ones(width, dtype=np.int64)
            points[: len(ROOM)] = d + 1
            self._made = least, points, len(ROOM) * (d + 1) + is_for_devices * self._request.gpu_count
        return self._made

    def _rated(self, snapshot: Snapshot, devices: BoolArray | None, rows: IntArray | None) -> Rated:
        """Of nodes that fit."""
        request, uses_metrics = self._request, False
        totals: FloatArray | None = None
        per_device: FloatArray | None = None
        for scorer, term in weighted(request, snapshot, self._scorers, self._stale_after_s):
            uses_metrics = uses_metrics or scorer.needs_metrics
            if term.ndim == 1:
                totals = term if totals is None else totals + term
            else:
                per_device = term if per_device is None else per_device + term
        if request.gpus:
            if devices is None:
                devices = find_fitting_devices(request, snapshot)
            best, chosen = best_devices(request.gpu_count, snapshot, devices, per_device)
            totals = best if totals is None else totals + best
        else:
            chosen = np.full(len(snapshot), -1)
        if totals is None:
            totals = np.zeros(len(snapshot))
        if not math.isfinite(totals.dot(totals)):  # the fastest way to see that one is not
            self._find_culprit(snapshot)
        totals = totals * _DECIMALS
        np.rint(totals, out=totals)
        totals /= _DECIMALS
        return Rated(totals, chosen, uses_metrics, rows=rows)

    def _find_culprit(self, snapshot: Snapshot) -> None:
        """Raise `ValueError` for a scorer that gives nodes or devices that fit no number.

        Where none is to blame, no filter asked for the devices that a node lacks: nothing is to be found there.
        """
        fitting = find_fitting_devices(self._request, snapshot)
        known = snapshot.without_stale_metrics(self._stale_after_s)
        for scorer, _ in self._scorers:
            scores = scorer.score(self._request, known)
            if scores is not None and not np.isfinite(scores if scores.ndim == 1 else scores[fitting]).all():
                raise _misbehaves(scorer)


def passed(
    request: Request, snapshot: Snapshot, filters: tuple[Filter, ...] | list[Filter]
) -> Iterator[BoolArray | None]:
    """Each filter's answer, None where it lets all pass."""
    for rule in filters:
        mask = rule.passes(request, snapshot)
        if mask is not None and mask.shape != (len(snapshot),):
            raise ValueError(
                f"filter {rule.name!r} must give one truth value per node; mend it or leave it out."
            )
        yield mask


def weighted(
    request: Request, snapshot: Snapshot, scorers: Weighted, stale_after_s: float
) -> Iterator[tuple[Scorer, FloatArray]]:
    """Each scorer's weighted say, (n,) or (n, d), of those that have one."""
    known = snapshot.without_stale_metrics(stale_after_s)
    shape = snapshot.columns.device_free.shape
    for scorer, weight in scorers:
        scores = scorer.score(request, known)
        if scores is None:
            continue
        if scores.shape != shape and scores.shape != shape[:1]:
            raise _misbehaves(scorer)
        if scores.ndim == 1 or request.gpus:  # else no device is used
            yield scorer, scores if weight == 1.0 else weight * scores


def best_devices(
    count: int, snapshot: Snapshot, fits: BoolArray, ratings: FloatArray | None
) -> tuple[FloatArray, IntArray]:
    """(n,) the mean rating of the best ``count`` devices that fit; (n,) the best one where that is one, else -1."""
    rated = np.where(fits, _ZERO if ratings is None else ratings, _REFUSED)
    if count == 1:
        best: FloatArray = np.maximum.reduce(rated, axis=1)
        fullest = np.where(rated == best[:, None], snapshot.columns.device_free, _INFINITE).argmin(axis=1)
        return best, fullest
    top = -np.partition(-rated, count - 1, axis=1)[:, :count]
    return top.mean(axis=1), np.full(len(snapshot), -1)


def _applies(part: object, work: str, request: Request) -> bool:
    applies = _optional(part, work, "applies")
    return applies is None or bool(applies(request))


def _optional(part: object, work: str, name: str) -> Callable[[Request], Any] | None:
    """The method of that name, where it stands beside what it is a short way to."""
    of_class: Mapping[str, Any] = vars(type(part))
    return getattr(part, name) if name in of_class and work in of_class else None


def _misbehaves(scorer: Scorer) -> ValueError:
    return ValueError(
        f"scorer {scorer.name!r} must give one finite number per node, or per device; mend it or leave it out."
    )
