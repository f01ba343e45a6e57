"""What a decision rests on, worked out when somebody looks: terms, runners-up, refusals and how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .decision import Placement
from .filters import find_fitting_devices
from .model import Request
from .refusals import Refusal, RefusalGroup
from .snapshot import BoolArray, FloatArray, IntArray, Snapshot

if TYPE_CHECKING:
    from .pipeline import Pipeline
    from .scorers import Scorer

_EXAMPLES = 3


class Grounds:
    """One request on one snapshot under one pipeline. ``avoided``: rows that are refused for another reason."""

    def __init__(
        self,
        pipeline: Pipeline,
        scorers: tuple[tuple[Scorer, float], ...],
        request: Request,
        snapshot: Snapshot,
        avoided: Mapping[int, str],
    ) -> None:
        self._pipeline = pipeline
        self._scorers = scorers
        self._request = request
        self._snapshot = snapshot
        self._avoided = avoided

    def devices(self, row: int, best: int) -> tuple[str, ...]:
        """Ids of the devices to prefer on a node; ``best`` is the best one's place where one is needed, else -1."""
        request = self._request
        if not request.gpus:
            return ()
        node = self._snapshot.at(row)
        if best >= 0:
            return (node.devices[best].id,)
        part = self._snapshot.only(row)
        terms = self._pipeline.terms(request, part, self._scorers)
        ratings = np.round(
            sum((t[0] for t in terms.values() if t.ndim == 2), np.zeros(part.columns.device_free.shape[1])), 9
        )
        places = np.flatnonzero(find_fitting_devices(request, part)[0])
        ranked = sorted(places, key=lambda place: -ratings[place])[: request.gpu_count]
        return tuple(node.devices[place].id for place in ranked)

    def terms(self, row: int) -> dict[str, float]:
        """Each scorer's say on a node; of a scorer that rates devices, on those that would be used."""
        part = self._snapshot.only(row)
        node = part.at(0)
        rated = self._pipeline.rate(self._request, part, self._scorers)
        used = set(self.devices(row, int(rated.devices[0])))
        places = [place for place, device in enumerate(node.devices) if device.id in used]
        terms = self._pipeline.terms(self._request, part, _taken_apart(self._scorers))
        return {
            name: float(term[0] if term.ndim == 1 else term[0, places].mean()) + 0.0
            for name, term in terms.items()
        }

    def ranked(self, best: int) -> Sequence[Placement]:
        """The next best nodes, best first."""
        rated = self._pipeline.rate(self._request, self._snapshot, self._scorers)
        totals = rated.totals.copy()
        totals[[best, *self._avoided]] = -np.inf
        rows = np.argsort(-totals, kind="stable")[: self._pipeline.runners_up]
        return [
            Placement(
                node_id=self._snapshot.nodes[row],
                device_ids=self.devices(int(row), int(rated.devices[row])),
                score=float(totals[row]),
                terms=self.terms(int(row)),
            )
            for row in rows
            if totals[row] > -np.inf
        ]

    def refusals(self) -> Iterator[Refusal]:
        """One for each node and filter that refuses it, in the order of the nodes."""
        for row in np.flatnonzero(self._refused.any(axis=0)).tolist():
            yield from self._of(row)

    def refused(self) -> Sequence[RefusalGroup]:
        """The refused nodes by their main reason: the first filter that would refuse them for ever, else the first."""
        refused, never = self._refused, self._never
        lasting = refused & never
        first = np.where(lasting.any(axis=0), lasting.argmax(axis=0), refused.argmax(axis=0))
        found: list[RefusalGroup] = []
        any_refused = refused.any(axis=0)
        for i, name in enumerate(self._names):
            for when in ("now", "never"):
                of_these = any_refused & (first == i) & (never[i] == (when == "never"))
                for rows in self._alike(i, np.flatnonzero(of_these)):
                    is_alone = refused[:, rows].sum(axis=0) == 1
                    nearest = np.lexsort((-self._free(name)[rows], ~is_alone))[:_EXAMPLES]
                    found.append(
                        RefusalGroup(
                            filter=name,
                            when="never" if when == "never" else "now",
                            count=int(rows.size),
                            alone=int(is_alone.sum()),
                            examples=tuple(self._refusal(i, int(row)) for row in rows[nearest]),
                        )
                    )
        return sorted(found, key=lambda group: -group.count)

    def _alike(self, i: int, rows: IntArray) -> list[IntArray]:
        """The rows as one group; nodes to avoid by the reason that came with each."""
        if i < len(self._pipeline.filters):
            return [rows] if rows.size else []
        by_reason: dict[str, list[int]] = {}
        for row in rows.tolist():
            by_reason.setdefault(self._avoided[row], []).append(row)
        return [np.array(alike) for alike in by_reason.values()]

    def _free(self, name: str) -> FloatArray:
        """(n,) what is free of that which a filter of this name looks at; zeros where it is no amount."""
        c = self._snapshot.columns
        if name == "gpu":
            freest: FloatArray = np.maximum(c.gpus_free, 0.0) + c.device_milli.max(axis=1, initial=0) / 1e6
            return freest
        free = {"memory": c.memory_free_bytes, "cpu": c.cpus_free}.get(name)
        return np.zeros(len(self._snapshot)) if free is None else np.asarray(free, dtype=np.float64)

    def _of(self, row: int) -> list[Refusal]:
        return [self._refusal(int(i), row) for i in np.flatnonzero(self._refused[:, row])]

    def _refusal(self, i: int, row: int) -> Refusal:
        node = self._snapshot.at(row)
        if i == len(self._pipeline.filters):
            return Refusal(node_id=node.id, filter="avoid", reason=self._avoided[row], when="now")
        rule = self._pipeline.filters[i]
        return Refusal(
            node_id=node.id,
            filter=rule.name,
            reason=rule.reason(self._request, node),
            when="never" if self._never[i, row] else "now",
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return (*(rule.name for rule in self._pipeline.filters), "avoid")

    @cached_property
    def _refused(self) -> BoolArray:
        """(filters + 1, n) True where that filter, or at last ``avoided``, refuses the node."""
        return np.vstack([self._by_filters(self._snapshot), _at(self._avoided, len(self._snapshot))])

    @cached_property
    def _never(self) -> BoolArray:
        """(filters + 1, n) True where the filter refuses even the empty node."""
        never = self._by_filters(self._snapshot.as_empty())
        return np.vstack([never, np.zeros(len(self._snapshot), dtype=bool)])

    def _by_filters(self, snapshot: Snapshot) -> BoolArray:
        n = len(snapshot)
        passed = self._pipeline.passed(self._request, snapshot)
        rows = [np.zeros(n, dtype=bool) if mask is None else ~mask for mask in passed]
        return np.array(rows, dtype=bool).reshape(len(passed), n)


def _taken_apart(scorers: tuple[tuple[Scorer, float], ...]) -> tuple[tuple[Scorer, float], ...]:
    """Scorers that are several in one, each for itself."""
    apart: list[tuple[Scorer, float]] = []
    for scorer, weight in scorers:
        parts = getattr(scorer, "parts", None)
        apart += [(part, weight * share) for part, share in parts] if parts else [(scorer, weight)]
    return tuple(apart)


def _at(avoided: Mapping[int, str], n: int) -> BoolArray:
    mask = np.zeros(n, dtype=bool)
    mask[list(avoided)] = True
    return mask
