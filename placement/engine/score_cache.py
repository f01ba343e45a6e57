"""Scores of every node per class of requests, brought up to date by rating only the nodes that changed since."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roost.placement.snapshot import BoolArray, FloatArray, IntArray, Snapshot

from .changes import History
from .columns import Table

_BLOCK = 32
_BLOCKS_FROM = 16_384
"""On so many nodes the best is looked for among the best of each block."""
_AT_ONCE = 4096
MAX_BYTES = 512 << 20
"""Kept scores take no more; those of the class that was asked for longest ago go first."""


@dataclass(slots=True)
class Rated:
    """Scores of n nodes. ``devices`` is the best one's place on the node, -1 where the request needs not just one, and
    anything where a filter refuses."""

    totals: FloatArray  # (n,), -inf where a filter refuses
    devices: NDArray[np.integer[Any]]  # (n,), kept as int16
    uses_metrics: bool
    rows: IntArray | None = None  # of what was rated those that fit: only they have scores here
    blocks: FloatArray | None = (
        None  # (n / _BLOCK, _BLOCK) the totals, once somebody asked for the best of many
    )
    peaks: FloatArray | None = None  # (n / _BLOCK,) the highest of each block

    def best(self) -> int:
        """The first row of the highest total."""
        n = len(self.totals)
        if n < _BLOCKS_FROM:
            return int(self.totals.argmax())
        if self.blocks is None or self.peaks is None:
            self.blocks = np.full((-(-n // _BLOCK), _BLOCK), -np.inf)
            self.blocks.flat[:n] = self.totals
            self.totals = self.blocks.reshape(-1)[:n]
            self.peaks = np.maximum.reduce(self.blocks, axis=1)
        block = int(self.peaks.argmax())
        return block * _BLOCK + int(self.blocks[block].argmax())

    def update(self, rows: IntArray, part: Rated) -> None:
        """Put the ratings of some rows in their place."""
        fitting = rows
        if part.rows is not None:
            self.totals.put(rows, -np.inf)
            fitting = rows.take(part.rows)
        self.totals.put(fitting, part.totals)
        self.devices.put(fitting, part.devices)
        self.uses_metrics |= part.uses_metrics
        if self.blocks is not None and self.peaks is not None:
            changed = rows // _BLOCK
            self.peaks[changed] = np.maximum.reduce(self.blocks.take(changed, axis=0), axis=1)


Rate = Callable[[Snapshot], Rated]
"""Rates a snapshot or a part of one; each row's answer depends on that row alone."""


def unrated(n: int) -> Rated:
    """Of so many nodes that nobody has rated yet."""
    return Rated(np.full(n, -np.inf), np.full(n, -1, dtype=np.int16), False)


@dataclass(slots=True)
class _Entry:
    rate: Rate
    rated: Rated
    history: History
    version: int
    fresh: BoolArray


class _Mirror:
    """Columns of the latest snapshot, brought up to date in place: what is rated is cut out of them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.columns = Table.of(snapshot.columns)
        self._history = snapshot.history
        self._version = snapshot.version

    def follow(self, snapshot: Snapshot) -> bool:
        """Whether these are the snapshot's columns now, but for the age of metrics; if not, nothing has changed."""
        if snapshot.history is not self._history:
            return False
        changes = snapshot.history.between(self._version, snapshot.version)
        if changes is None or snapshot.history.moved > self._version:
            return False
        for change in changes:
            if change.values is not None:
                self.columns.put(change.rows, change.values)
        self._version = snapshot.version
        return True


class Kept:
    """What a policy remembers between decisions: a cache, never part of its value. Safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.lock = threading.Lock()
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._mirror: _Mirror | None = None

    def rated(self, key: Hashable, snapshot: Snapshot, fresh: BoolArray, make: Callable[[], Rate]) -> Rated:
        """The scores of all nodes for that class; to be read only, and only while ``lock`` is held.

        ``fresh`` (n,): whose metrics count; a node that changes in this is rated again, too. ``make`` gives what rates,
        and is asked once for a class that is kept.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.history is snapshot.history and entry.version > snapshot.version:
            older = unrated(len(snapshot))  # somebody still looks at an older picture
            older.update(np.arange(len(snapshot)), entry.rate(snapshot))
            return older
        if self._mirror is None or not self._mirror.follow(snapshot):
            self._mirror = _Mirror(snapshot)
        columns = self._mirror.columns
        rows = None if entry is None else _to_rate_again(entry, snapshot)
        if entry is None or rows is None:
            rate = make() if entry is None else entry.rate
            entry = _Entry(
                rate, _rate_all(snapshot, columns, rate), snapshot.history, snapshot.version, fresh
            )
            self._store(key, entry)
            return entry.rated
        if entry.fresh is not fresh and entry.rated.uses_metrics:
            rows |= set(np.flatnonzero(entry.fresh != fresh).tolist())
        if rows:
            at = np.fromiter(rows, dtype=np.int64, count=len(rows))
            try:
                part = entry.rate(snapshot.part(at, columns.part(at)))
            except BaseException:
                del self._entries[key]  # its rows may have moved
                raise
            entry.rated.update(at, part)
        entry.version, entry.fresh = snapshot.version, fresh
        self._entries.move_to_end(key)
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


def _rate_all(snapshot: Snapshot, columns: Table, rate: Rate) -> Rated:
    """All nodes, as many at a time as a processor's cache holds."""
    rated = unrated(len(snapshot))
    for start in range(0, max(1, len(snapshot)), _AT_ONCE):
        end = min(start + _AT_ONCE, len(snapshot))
        rows = np.arange(start, end)
        rated.update(rows, rate(snapshot.part(rows, columns.part(slice(start, end)))))
    return rated


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
            entry.rated.blocks = None
            entry.rated.totals = np.append(entry.rated.totals, -np.inf)[source]
            entry.rated.devices = np.append(entry.rated.devices, np.int16(-1))[source]
            entry.fresh = np.append(entry.fresh, False)[source]
            rows = set(np.flatnonzero(pending[source]).tolist())
        rows.update(change.rows)
    return rows
