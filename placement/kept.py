"""Scores of every node per class of requests, brought up to date by rating only the nodes that changed since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .snapshot import BoolArray, FloatArray, History, Snapshot

MAX_BYTES = 512 << 20
"""Kept scores take no more; those of the class that was asked for longest ago go first."""


@dataclass(slots=True)
class Rated:
    """Scores of n nodes. ``devices`` is the best one's place on the node, -1 where the request needs not just one."""

    totals: FloatArray  # (n,), -inf where a filter refuses
    devices: NDArray[np.int16]  # (n,)
    uses_metrics: bool


Rate = Callable[[Snapshot], Rated]
"""Rates a snapshot or a part of one; each row's answer depends on that row alone."""


@dataclass(slots=True)
class _Entry:
    rated: Rated
    history: History
    version: int
    fresh: BoolArray


class Kept:
    """What a policy remembers between decisions: a cache, never part of its value. Safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.lock = threading.Lock()
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def rated(self, key: Hashable, snapshot: Snapshot, fresh: BoolArray, rate: Rate) -> Rated:
        """The scores of all nodes for that class; to be read only, and only while ``lock`` is held.

        ``fresh`` (n,): whose metrics count; a node that changes in this is rated again, too.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.history is snapshot.history and entry.version > snapshot.version:
            return rate(snapshot)  # somebody still looks at an older picture
        rows = None if entry is None else _to_rate_again(entry, snapshot)
        if entry is None or rows is None:
            entry = _Entry(rate(snapshot), snapshot.history, snapshot.version, fresh)
            self._store(key, entry)
            return entry.rated
        del self._entries[key]  # a scorer that raises leaves nothing half done behind
        if entry.fresh is not fresh and entry.rated.uses_metrics:
            rows |= set(np.flatnonzero(entry.fresh != fresh).tolist())
        entry.version, entry.fresh = snapshot.version, fresh
        if rows:
            at = np.fromiter(rows, dtype=np.int64, count=len(rows))
            part = rate(snapshot.part(at))
            entry.rated.totals[at], entry.rated.devices[at] = part.totals, part.devices
            entry.rated.uses_metrics |= part.uses_metrics
        self._entries[key] = entry
        return entry.rated

    def _store(self, key: Hashable, entry: _Entry) -> None:
        self._entries.pop(key, None)
        self._entries[key] = entry
        in_use = sum(each.rated.totals.nbytes + each.rated.devices.nbytes for each in self._entries.values())
        while in_use > self._max_bytes and len(self._entries) > 1:
            oldest = self._entries.popitem(last=False)[1]
            in_use -= oldest.rated.totals.nbytes + oldest.rated.devices.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self._max_bytes,)


def _to_rate_again(entry: _Entry, snapshot: Snapshot) -> set[int] | None:
    """The rows that changed since, once the entry's were moved to where the nodes are now; None: that is not known."""
    history = snapshot.history
    if entry.history is not history:
        return None
    unmoved = history.rows_between(entry.version, snapshot.version)
    changes = history.between(entry.version, snapshot.version) if unmoved is None else None
    if changes is None:
        return unmoved
    rows: set[int] = set()
    for change in changes:
        if change.source is not None:
            source = change.source  # -1, of a new node, takes the last: what is appended
            pending = np.zeros(len(entry.rated.totals) + 1, dtype=bool)
            pending[list(rows)] = True
            entry.rated.totals = np.append(entry.rated.totals, -np.inf)[source]
            entry.rated.devices = np.append(entry.rated.devices, np.int16(-1))[source]
            entry.fresh = np.append(entry.fresh, False)[source]
            rows = set(np.flatnonzero(pending[source]).tolist())
        rows.update(change.rows)
    return rows
