"""The scores of nodes for one class of requests.

A filter or scorer may define ``applies(request)``, which returns False if it has no effect on the request. A filter
may define ``least(request)``, which returns the amounts that must be free: one comparison serves all such filters. Both
methods are ignored unless the object's own class, not a base class, defines them together with ``passes`` or ``score``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from roost.placement.model import Request
from roost.placement.rules.filters import Filter, find_fitting_devices
from roost.placement.rules.scorers import Scorer, WeightedScorers
from roost.placement.tables.columns import ROOM
from roost.placement.tables.snapshot import BoolArray, FloatArray, IntArray, Snapshot

from .score_cache import Scores

# These constants are arrays, so that numpy need not convert them in each operation.
_DECIMALS = np.array(1e9)
"""Sums of scores are equal if they are equal to 9 decimals."""
_MARGIN = np.array(0.5e-9)
"""Devices of one node with scores that differ by at most this are equal."""
_KINDS = {
    "b": "truth values",
    "f": "numbers",
    "i": "whole numbers",
    "u": "whole numbers",
    "O": "objects",
    "U": "text",
}
_ZERO, _INFINITE, _REFUSED = np.array(0.0), np.array(np.inf), np.array(-np.inf)


class ClassScorer:
    """A function that scores the nodes of a snapshot, or of a part of one, for the requests of one class."""

    __slots__ = ("_filters", "_least", "_limits", "_request", "_scorers", "_stale_after_s")

    def __init__(
        self, filters: tuple[Filter, ...], scorers: WeightedScorers, stale_after_s: float, request: Request
    ) -> None:
        self._request, self._stale_after_s = request, stale_after_s
        self._scorers = tuple(pair for pair in scorers if _applies(pair[0], "score", request))
        self._filters: list[Filter] = []
        self._least: dict[str, float] = {}
        for rule in filters:
            find_least = _find_shortcut(rule, "passes", "least")
            least = find_least(request) if find_least else None
            if least is not None:
                self._least.update(least)
            elif _applies(rule, "passes", request):
                self._filters.append(rule)
        self._limits: tuple[FloatArray, IntArray, int] | None = None

    def __call__(self, snapshot: Snapshot) -> Scores:
        """Return the scores of the nodes that pass all filters. `Scores.rows` has these nodes, if not all pass."""
        fits, devices = self._find_fitting(snapshot)
        rows: IntArray | None = None
        if fits is not None:
            rows = fits.nonzero()[0]
            if not rows.size:
                return Scores(np.empty(0), rows, False, rows=rows)
            if rows.size == len(snapshot):
                rows = None
            else:
                snapshot = snapshot.part(rows, snapshot.columns.part(rows))
                devices = None if devices is None else devices.take(rows, axis=0)
        return self._score(snapshot, devices, rows)

    def _find_fitting(self, snapshot: Snapshot) -> tuple[BoolArray | None, BoolArray | None]:
        """Return (n,) True if the node passes all filters, and (n, d) True if the device fits.

        The first is None if all nodes pass. The second is None if no filter has compared the devices.
        """
        fits: BoolArray | None = None
        devices: BoolArray | None = None
        request = self._request
        if self._least:
            room = snapshot.columns.room
            least, points, enough = self._find_limits(room.shape[1] - len(ROOM))
            has = room[:, : len(least)] >= least
            if request.gpu_models and len(least) > len(ROOM):
                has[:, len(ROOM) :] &= snapshot.accepted_devices(request)
            fits = has.dot(points) >= enough
            if len(least) > len(ROOM):
                devices = has[:, len(ROOM) :]
        for mask in apply_filters(request, snapshot, self._filters) if self._filters else ():
            if mask is not None:
                fits = mask if fits is None else fits & mask
        return fits, devices

    def _find_limits(self, d: int) -> tuple[FloatArray, IntArray, int]:
        """Return what a node needs to fit: a threshold for each value of `Columns.room`, its points, and a least sum.

        A node gets the points of each threshold that its room reaches. It fits if they add up to the least sum.
        A device counts one point, so that any devices of the node can make up the number that the request asks for.
        ``d`` is the number of device columns.
        """
        is_for_devices = "device_free" in self._least
        width = len(ROOM) + d * is_for_devices
        if self._limits is None or len(self._limits[0]) != width:
            least = np.full(width, self._least.get("device_free", -np.inf))
            least[: len(ROOM)] = [self._least.get(name, -np.inf) for name in ROOM]
            points = np.ones(width, dtype=np.int64)
            points[: len(ROOM)] = d + 1
            self._limits = least, points, len(ROOM) * (d + 1) + is_for_devices * self._request.gpu_count
        return self._limits

    def _score(self, snapshot: Snapshot, devices: BoolArray | None, rows: IntArray | None) -> Scores:
        request, uses_metrics = self._request, False
        totals: FloatArray | None = None
        per_device: FloatArray | None = None
        for scorer, term in weigh_scores(request, snapshot, self._scorers, self._stale_after_s):
            uses_metrics = uses_metrics or scorer.needs_metrics
            if term.ndim == 1:
                totals = term if totals is None else totals + term
            else:
                per_device = term if per_device is None else per_device + term
        if request.gpus:
            if devices is None:
                devices = find_fitting_devices(request, snapshot)
            best, chosen = choose_devices(request.gpu_count, snapshot, devices, per_device)
            totals = best if totals is None else totals + best
        else:
            chosen = np.full(len(snapshot), -1)
        if totals is None:
            totals = np.zeros(len(snapshot))
        if not math.isfinite(totals.dot(totals)):  # the fastest check of all totals
            for scorer, term in weigh_scores(request, snapshot, self._scorers, self._stale_after_s):
                scored = term if term.ndim == 1 or devices is None else term[devices]
                if not np.isfinite(scored).all():  # else the policy has no filter for GPUs
                    raise _wrong_scores(
                        scorer, "NaN or an infinite number", snapshot.columns.device_free.shape
                    )
        totals = totals * _DECIMALS
        np.rint(totals, out=totals)
        totals /= _DECIMALS
        return Scores(totals, chosen, uses_metrics, rows=rows)


def apply_filters(
    request: Request, snapshot: Snapshot, filters: Sequence[Filter]
) -> Iterator[BoolArray | None]:
    """Yield, for each filter, (n,) True if the node passes; None if all nodes pass."""
    for rule in filters:
        mask = rule.passes(request, snapshot)
        is_array = isinstance(mask, np.ndarray) and mask.dtype.kind == "b"
        if mask is not None and not (is_array and mask.shape == (len(snapshot),)):
            raise ValueError(
                f"filter {rule.name!r} must give one truth value per node, in a numpy array of shape "
                f"({len(snapshot)},); it gave {_describe(mask)}. Fix it or leave it out."
            )
        yield mask


def weigh_scores(
    request: Request, snapshot: Snapshot, scorers: WeightedScorers, stale_after_s: float
) -> Iterator[tuple[Scorer, FloatArray]]:
    """Yield each scorer that has an opinion, with its weighted scores: (n,) of nodes or (n, d) of devices."""
    known = snapshot.without_stale_metrics(stale_after_s)
    shape = snapshot.columns.device_free.shape
    for scorer, weight in scorers:
        scores = scorer.score(request, known)
        if scores is None:
            continue
        if type(scores) is not np.ndarray or scores.dtype.char != "d":  # the usual case costs nothing
            scores = _read_scores(scorer, scores, shape)
        if scores.shape != shape and scores.shape != shape[:1]:
            raise _wrong_scores(scorer, f"an array {scores.shape}", shape)
        if scores.ndim == 1 or request.gpus:  # without GPUs, scores of devices have no effect
            yield scorer, scores if weight == 1.0 else weight * scores


def choose_devices(
    count: int, snapshot: Snapshot, fits: BoolArray, scores: FloatArray | None
) -> tuple[FloatArray, IntArray]:
    """Return for each node, (n,), the mean score of its ``count`` best devices that fit, and its best device.

    The best device is -1 unless ``count`` is 1.
    """
    scored = np.where(fits, _ZERO if scores is None else scores, _REFUSED)
    if count == 1:
        best: FloatArray = np.maximum.reduce(scored, axis=1)
        is_best = scored >= (best - _MARGIN)[:, None]
        return best, np.where(is_best, snapshot.columns.device_free, _INFINITE).argmin(axis=1)
    top = -np.partition(-scored, count - 1, axis=1)[:, :count]
    return top.mean(axis=1), np.full(len(snapshot), -1)


def _applies(part: object, method: str, request: Request) -> bool:
    applies = _find_shortcut(part, method, "applies")
    return applies is None or bool(applies(request))


def _find_shortcut(part: object, method: str, name: str) -> Callable[[Request], Any] | None:
    """Return the method ``name`` if the class of ``part`` defines it together with ``method``."""
    of_class: Mapping[str, Any] = vars(type(part))
    return getattr(part, name) if name in of_class and method in of_class else None


def _read_scores(scorer: Scorer, scores: object, shape: tuple[int, ...]) -> FloatArray:
    """Return scores of another type as numbers that can be added up, or raise ``ValueError``."""
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "biuf":
        raise _wrong_scores(scorer, _describe(scores), shape)
    return np.asarray(scores, dtype=np.float64)


def _wrong_scores(scorer: Scorer, given: str, shape: tuple[int, ...]) -> ValueError:
    n, d = shape
    return ValueError(
        f"scorer {scorer.name!r} must give one finite number per node, or per device, in a numpy array of shape "
        f"({n},) or ({n}, {d}); it gave {given}. Fix it or leave it out."
    )


def _describe(result: object) -> str:
    """Return what a scorer or a filter has given, as part of a sentence: ``a list``, ``an array (3, 2) of text``."""
    if isinstance(result, np.ndarray):
        return f"an array {result.shape} of {_KINDS.get(result.dtype.kind, str(result.dtype))}"
    if isinstance(result, (str, bytes)):
        return "a text"
    if isinstance(result, (bool, int, float, np.generic)):
        return f"one {type(result).__name__}"
    return f"a {type(result).__name__}"
