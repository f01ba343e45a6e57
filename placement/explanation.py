"""The reasons behind a pipeline's decision, computed when somebody reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .decision import Placement
from .engine.class_scores import apply_filters
from .engine.score_cache import Scores
from .model import Request
from .rules.filters import find_fitting_devices
from .rules.refusals import Refusal, RefusalGroup, When, find_cause
from .tables.snapshot import BoolArray, FloatArray, IntArray, Snapshot

if TYPE_CHECKING:
    from .pipeline import Pipeline
    from .rules.scorers import WeightedScorers

_EXAMPLES = 3
_FEW = 64
"""At most this many nodes are read one by one, which is cheaper than to build the columns of all nodes."""


@dataclass
class Explanation:
    """The reasons why one request got its node, and why other nodes were refused.

    They are computed when they are read.
    """

    pipeline: Pipeline
    scorers: WeightedScorers
    request: Request
    snapshot: Snapshot
    best: int | None
    """The row of the chosen node in ``snapshot``, None if there is none."""
    avoided: Mapping[int, str]
    """The reasons against the nodes that the caller wants to avoid, by row."""

    def choose_devices(self, row: int, best: int) -> tuple[str, ...]:
        """Return the ids of a node's preferred devices: device ``best``, or those of highest score if it is -1."""
        request = self.request
        if not request.gpus:
            return ()
        node = self.snapshot.at(row)
        if best >= 0:
            return (node.devices[best].id,)
        part = self.snapshot.pick([row])
        terms = self.pipeline.terms(request, part, self.scorers)
        no_score = np.zeros(part.columns.device_free.shape[1])
        scores = np.round(sum((t[0] for t in terms.values() if t.ndim == 2), no_score), 9)
        fitting = np.flatnonzero(find_fitting_devices(request, part)[0])
        ranked = sorted(fitting, key=lambda device: -scores[device])[: request.gpu_count]
        return tuple(node.devices[device].id for device in ranked)

    @property
    def terms(self) -> Mapping[str, float]:
        """Each scorer's weighted score for the chosen node. Scores of devices are averaged over the preferred ones."""
        return self._ranked[0].terms if self._ranked else {}

    @property
    def runners_up(self) -> tuple[Placement, ...]:
        return self._ranked[1:]

    @cached_property
    def _scores(self) -> Scores:
        return self.pipeline.score(self.request, self.snapshot, self.scorers)

    @cached_property
    def _ranked(self) -> tuple[Placement, ...]:
        """The chosen node and the next best ones, with their terms."""
        if self.best is None:
            return ()
        scores = self._scores
        order = scores.totals.copy()
        order[list(self.avoided)] = -np.inf
        order[self.best] = np.inf  # the first in any case
        rows = _find_highest(order, 1 + self.pipeline.runners_up)
        part = self.snapshot.pick(rows)
        terms = self.pipeline.terms(self.request, part, self.scorers)
        return tuple(
            self._build_placement(row, scores, {name: term[at] for name, term in terms.items()})
            for at, row in enumerate(rows)
        )

    def _build_placement(self, row: int, scores: Scores, terms: Mapping[str, FloatArray]) -> Placement:
        ids = self.choose_devices(row, int(scores.devices[row]))
        devices = [at for at, device in enumerate(self.snapshot.at(row).devices) if device.id in ids]
        return Placement(
            node_id=self.snapshot.nodes[row],
            device_ids=ids,
            score=float(scores.totals[row]),
            terms={
                name: float(term if term.ndim == 0 else term[devices].mean()) + 0.0
                for name, term in terms.items()
            },
        )

    @cached_property
    def refusals(self) -> tuple[Refusal, ...]:
        return tuple(self.iterate_refusals())

    def iterate_refusals(self) -> Iterator[Refusal]:
        if not self._suspects.size:
            return
        for at in np.flatnonzero(self._refused.any(axis=0)).tolist():
            for i in np.flatnonzero(self._refused[:, at]):
                yield self._refusal(int(i), at)

    @cached_property
    def refused(self) -> tuple[RefusalGroup, ...]:
        """The refused nodes in groups by their main reason, as in `group_refusals`. Only a few reasons are computed."""
        if not self._suspects.size:
            return ()
        refused, never = self._refused, self._never
        lasting = refused & never
        first = np.where(lasting.any(axis=0), lasting.argmax(axis=0), refused.argmax(axis=0))
        any_refused = refused.any(axis=0)
        whens: tuple[When, When] = ("now", "never")
        groups: list[RefusalGroup] = []
        for i, name in enumerate((*(rule.name for rule in self.pipeline.filters), "avoid")):
            for when in whens:
                of_these = any_refused & (first == i) & (never[i] == (when == "never"))
                for group in self._split_by_reason(i, np.flatnonzero(of_these)):
                    is_alone = refused[:, group].sum(axis=0) == 1
                    nearest = np.lexsort((-self._free(name)[group], ~is_alone))[:_EXAMPLES]
                    groups.append(
                        RefusalGroup(
                            filter=name,
                            when=when,
                            count=int(group.size),
                            alone=int(is_alone.sum()),
                            examples=tuple(self._refusal(i, int(at)) for at in group[nearest]),
                        )
                    )
        return tuple(sorted(groups, key=lambda group: -group.count))

    def _split_by_reason(self, i: int, group: IntArray) -> list[IntArray]:
        """Return the nodes that filter ``i`` refuses as one group, or as a group for each cause (`find_cause`)."""
        is_avoided = i == len(self.pipeline.filters)
        if not is_avoided and self.pipeline.filters[i].name != "draining":
            return [group] if group.size else []
        by_cause: dict[str, list[int]] = {}
        for at in group.tolist():
            refusal = self._refusal(i, at)
            by_cause.setdefault(find_cause(refusal.filter, refusal.reason), []).append(at)
        return [np.array(each) for each in by_cause.values()]

    def _free(self, name: str) -> FloatArray:
        """Return (m,) each suspect's free amount for the filter of this name; zeros if the filter has no amount."""
        c = self._part.columns
        if name == "gpu":
            freest: FloatArray = np.maximum(c.gpus_free, 0.0) + c.device_milli.max(axis=1, initial=0) / 1e6
            return freest
        free = {"memory": c.memory_free_bytes, "cpu": c.cpus_free}.get(name)
        return np.zeros(len(self._part)) if free is None else np.asarray(free, dtype=np.float64)

    def _refusal(self, i: int, at: int) -> Refusal:
        node = self._part.at(at)
        if i == len(self.pipeline.filters):
            return Refusal(
                node_id=node.id, filter="avoid", reason=self.avoided[int(self._suspects[at])], when="now"
            )
        rule = self.pipeline.filters[i]
        return Refusal(
            node_id=node.id,
            filter=rule.name,
            reason=rule.reason(self.request, node),
            when="never" if self._never[i, at] else "now",
        )

    @cached_property
    def _suspects(self) -> IntArray:
        """The suspects: (m,) the rows of all nodes that a filter refuses or that are avoided, in order."""
        if self.best is None:
            return np.arange(len(self.snapshot))
        is_refused = self._scores.totals == -np.inf
        is_refused[list(self.avoided)] = True
        return np.flatnonzero(is_refused)

    @cached_property
    def _part(self) -> Snapshot:
        """A snapshot of the suspects. If they are few, the columns of the other nodes are not built."""
        rows = self._suspects
        return self.snapshot.pick(rows.tolist()) if len(rows) <= _FEW else self.snapshot.part(rows)

    @cached_property
    def _refused(self) -> BoolArray:
        """(filters + 1, m) True if the row's filter refuses the suspect. The last row is True for avoided nodes."""
        return self._apply_filters(self._part, np.isin(self._suspects, list(self.avoided)))

    @cached_property
    def _never(self) -> BoolArray:
        """(filters + 1, m) True if a filter (the row) would refuse a node of `_suspects` on which no kernel ran.

        The last row, for the nodes in `avoided`, is always False.
        """
        return self._apply_filters(self._part.as_empty(), np.zeros(len(self._part), dtype=bool))

    def _apply_filters(self, part: Snapshot, avoided: BoolArray) -> BoolArray:
        masks = apply_filters(self.request, part, self.pipeline.filters)
        return np.array([*(np.zeros_like(avoided) if mask is None else ~mask for mask in masks), avoided])


def _find_highest(values: FloatArray, count: int) -> list[int]:
    """Return the indices of the `count` highest values, highest first. Values of -inf are left out.

    Equal values keep their order.
    """
    left, found = values.copy(), list[int]()
    while len(found) < count and left.size and left[row := int(left.argmax())] > -np.inf:
        found.append(row)
        left[row] = -np.inf
    return found
