"""Scores of every node per class of requests, brought up to date by rating only the nodes that changed since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import COLUMNS, Columns
from .history import History
from .snapshot import BoolArray, FloatArray, IntArray, Snapshot

_BLOCK = 256
_AT_ONCE = 4096
MAX_BYTES = 512 << 20
"""Kept scores take no more; those of the class that was asked for longest ago go first."""


@dataclass(slots=True)
class Rated:
    """Scores of n nodes. ``devices`` is the best one's place on the node, -1 where the request needs not just one."""

    totals: FloatArray  # (n,), -inf where a filter refuses
    devices: NDArray[np.int16]  # (n,)
    uses_metrics: bool
    peaks: FloatArray | None = (
        None  # (n / _BLOCK,) the highest total of each block, once somebody asked for the best
    )

    def best(self) -> int:
        """The first row of the highest total."""
        if len(self.totals) <= 16 * _BLOCK:
            return int(self.totals.argmax())
        if self.peaks is None:
            self.peaks = np.maximum.reduceat(self.totals, np.arange(0, len(self.totals), _BLOCK))
        start = int(self.peaks.argmax()) * _BLOCK
        return start + int(self.totals[start : start + _BLOCK].argmax())

    def update(self, rows: IntArray, part: Rated) -> None:
        """Put the ratings of some rows in their place."""
        before = self.totals[rows]
        self.totals[rows], self.devices[rows] = part.totals, part.devices
        self.uses_metrics |= part.uses_metrics
        if self.peaks is not None:
            blocks = rows // _BLOCK
            was_peak = before >= self.peaks[blocks]
            np.maximum.at(self.peaks, blocks, part.totals)
            for block in set(blocks[was_peak & (part.totals < self.peaks[blocks])].tolist()):
                self.peaks[block] = self.totals[block * _BLOCK : (block + 1) * _BLOCK].max()


Rate = Callable[[Snapshot], Rated]
"""Rates a snapshot or a part of one; each row's answer depends on that row alone."""


@dataclass(slots=True)
class _Entry:
    rated: Rated
    history: History
    version: int
    fresh: BoolArray


class _Mirror:
    """Columns of the latest snapshot, brought up to date in place: what is rated is cut out of them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.columns = Columns(**{name: getattr(snapshot.columns, name).copy() for name in COLUMNS})
        for name in COLUMNS:
            getattr(self.columns, name).setflags(write=True)
        self._history = snapshot.history
        self._version = snapshot.version

    def follow(self, snapshot: Snapshot) -> bool:
        """Whether these are the snapshot's columns now, but for the age of metrics; if not, nothing has changed."""
        if snapshot.history is not self._history:
            return False
        changes = snapshot.history.between(self._version, snapshot.version)
        if changes is None or any(change.source is not None for change in changes):
            return False
        for change in changes:
            rows = list(change.rows)
            for name, values in change.columns.items():
                getattr(self.columns, name)[rows] = values
        self._version = snapshot.version
        return True


class Kept:
    """What a policy remembers between decisions: a cache, never part of its value. Safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.lock = threading.Lock()
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._mirror: _Mirror | None = None

    def rated(self, key: Hashable, snapshot: Snapshot, fresh: BoolArray, rate: Rate) -> Rated:
        """The scores of all nodes for that class; to be read only, and only while ``lock`` is held.

        ``fresh`` (n,): whose metrics count; a node that changes in this is rated again, too.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.history is snapshot.history and entry.version > snapshot.version:
            return rate(snapshot)  # somebody still looks at an older picture
        if self._mirror is None or not self._mirror.follow(snapshot):
            self._mirror = _Mirror(snapshot)
        columns = self._mirror.columns
        rows = None if entry is None else _to_rate_again(entry, snapshot)
        if entry is None or rows is None:
            entry = _Entry(_rate_all(snapshot, columns, rate), snapshot.history, snapshot.version, fresh)
            self._store(key, entry)
            return entry.rated
        del self._entries[key]  # a scorer that raises leaves nothing half done behind
        if entry.fresh is not fresh and entry.rated.uses_metrics:
            rows |= set(np.flatnonzero(entry.fresh != fresh).tolist())
        entry.version, entry.fresh = snapshot.version, fresh
        if rows:
            at = np.fromiter(rows, dtype=np.int64, count=len(rows))
            entry.rated.update(at, rate(snapshot.part(at, columns.part(at))))
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


def _rate_all(snapshot: Snapshot, columns: Columns, rate: Rate) -> Rated:
    """All nodes, as many at a time as a processor's cache holds."""
    parts = []
    for start in range(0, max(1, len(snapshot)), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(snapshot)))
        parts.append(rate(snapshot.part(rows, columns.part(rows))))
    return Rated(
        np.concatenate([part.totals for part in parts]),
        np.concatenate([part.devices for part in parts]),
        any(part.uses_metrics for part in parts),
    )


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
            entry.rated.peaks = None
            entry.rated.totals = np.append(entry.rated.totals, -np.inf)[source]
            entry.rated.devices = np.append(entry.rated.devices, np.int16(-1))[source]
            entry.fresh = np.append(entry.fresh, False)[source]
            rows = set(np.flatnonzero(pending[source]).tolist())
        rows.update(change.rows)
    return rows
