"""The scores of every node, for each class of requests. Only nodes that changed are scored again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roost.placement.tables.changes import History
from roost.placement.tables.columns import Columns, Table
from roost.placement.tables.snapshot import BoolArray, FloatArray, IntArray, Snapshot

_BLOCK = 32
_BLOCKS_FROM = 16_384
"""From this many nodes on, the best node is searched only in the block of nodes that has the highest score."""
_AT_ONCE = 4096
"""At most this many nodes are scored together, so that their columns fit into a processor's cache."""
MAX_BYTES = 512 << 20
"""At most this many bytes of scores are kept. The class of requests that was used longest ago is dropped first."""
_MOST_CLASSES = 1_000
"""At most this many classes of requests are kept, because a class takes memory that `MAX_BYTES` does not count."""


@dataclass(slots=True)
class Scores:
    """The scores of n nodes. ``devices`` has each node's best device, or -1 unless the request needs one device."""

    totals: FloatArray  # (n,), -inf if a filter refuses
    devices: NDArray[np.integer[Any]]  # (n,), kept as int16
    uses_metrics: bool
    rows: IntArray | None = None  # the nodes that fit, if not all do: only these have scores here
    blocks: FloatArray | None = None  # (n / _BLOCK, _BLOCK) the totals of a large cluster
    peaks: FloatArray | None = None  # (n / _BLOCK,) the highest total of each block

    @classmethod
    def of(cls, snapshot: Snapshot, columns: Columns, score_nodes: ScoreNodes) -> Scores:
        n = len(snapshot)
        scores = cls(np.full(n, -np.inf), np.full(n, -1, dtype=np.int16), False)
        for start in range(0, max(1, n), _AT_ONCE):
            end = min(start + _AT_ONCE, n)
            rows = np.arange(start, end)
            scores.update(rows, score_nodes(snapshot.part(rows, columns.part(slice(start, end)))))
        return scores

    def find_best(self) -> int:
        n = len(self.totals)
        if n < _BLOCKS_FROM:
            return int(self.totals.argmax())
        if self.blocks is None or self.peaks is None:
            self.blocks = np.full((-(-n // _BLOCK), _BLOCK), -np.inf)
            self.blocks.flat[:n] = self.totals
            self.totals = self.blocks.reshape(-1)[:n]  # a view: updates of the totals reach the blocks
            self.peaks = np.maximum.reduce(self.blocks, axis=1)
        block = int(self.peaks.argmax())
        return block * _BLOCK + int(self.blocks[block].argmax())

    def update(self, rows: IntArray, part: Scores) -> None:
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


ScoreNodes = Callable[[Snapshot], Scores]
"""A function that scores the nodes of a snapshot. The score of a node depends on that node alone."""


@dataclass(slots=True)
class _Entry:
    score_nodes: ScoreNodes
    scores: Scores
    history: History
    version: int
    fresh: BoolArray
    counted_bytes: int = 0


class ScoreCache:
    """The scores that a policy keeps between decisions. Copies and pickles of the policy start with an empty cache.

    Several threads may use one cache. Each holds ``lock`` while it calls ``update`` and reads the result.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.lock = threading.Lock()
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._in_use = 0  # bytes
        self._table: Table | None = None  # of the newest snapshot, to copy the parts that are scored from
        self._history: History | None = None
        self._version = 0

    def update(
        self, key: Hashable, snapshot: Snapshot, fresh: BoolArray, make: Callable[[], ScoreNodes]
    ) -> Scores:
        """Return the scores of all nodes for the class ``key``. The caller holds ``lock`` and must not change them.

        ``fresh`` is (n,) True for nodes with fresh metrics. A node is scored again if it has changed, or if its value
        in ``fresh`` has changed. ``make`` returns the function that scores nodes for a class that is not cached yet.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.history is snapshot.history and entry.version > snapshot.version:
            # The caller still has an older snapshot. The entry stays as it is, for callers with the newer one.
            return Scores.of(snapshot, snapshot.columns, entry.score_nodes)
        table = self._update_table(snapshot)
        rows = None if entry is None else _follow_moves(entry, snapshot)
        if entry is None or rows is None:
            score_nodes = make() if entry is None else entry.score_nodes
            scores = Scores.of(snapshot, table, score_nodes)
            entry = _Entry(score_nodes, scores, snapshot.history, snapshot.version, fresh)
            self._store(key, entry)
            return scores
        if entry.fresh is not fresh and entry.scores.uses_metrics:
            rows |= set(np.flatnonzero(entry.fresh != fresh).tolist())
        if rows:
            at = np.fromiter(rows, dtype=np.int64, count=len(rows))
            try:
                part = entry.score_nodes(snapshot.part(at, table.part(at)))
            except BaseException:
                self._drop(key)  # its rows may have moved, and its version is the old one
                raise
            entry.scores.update(at, part)
        entry.version, entry.fresh = snapshot.version, fresh
        self._entries.move_to_end(key)
        return entry.scores

    def find(self, key: Hashable, snapshot: Snapshot, fresh: BoolArray) -> Scores | None:
        """Return a copy of the scores for the class ``key`` if the cache has those of this very snapshot, else None.

        Return None also while another thread holds ``lock``, because that thread may compute for long.
        """
        if not self.lock.acquire(blocking=False):
            return None
        try:
            entry = self._entries.get(key)
            if entry is None or entry.history is not snapshot.history or entry.version != snapshot.version:
                return None
            if entry.scores.uses_metrics and not np.array_equal(entry.fresh, fresh):
                return None
            return Scores(entry.scores.totals.copy(), entry.scores.devices.copy(), entry.scores.uses_metrics)
        finally:
            self.lock.release()

    def _update_table(self, snapshot: Snapshot) -> Table:
        """Bring the table up to this snapshot, and return it. Its ages of metrics may be out of date."""
        history, changes = snapshot.history, None
        if history is self._history and history.moved <= self._version:
            changes = history.between(self._version, snapshot.version)
        if self._table is None or changes is None:
            self._table, self._history = Table.of(snapshot.columns), history
        for change in changes or ():
            if change.values is not None:
                self._table.put(change.rows, change.values)
        self._version = snapshot.version
        return self._table

    def _store(self, key: Hashable, entry: _Entry) -> None:
        self._drop(key)
        entry.counted_bytes = entry.scores.totals.nbytes + entry.scores.devices.nbytes
        self._entries[key] = entry
        self._in_use += entry.counted_bytes
        while len(self._entries) > _MOST_CLASSES or (
            self._in_use > self._max_bytes and len(self._entries) > 1
        ):
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._in_use -= entry.counted_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return ScoreCache, (self._max_bytes,)


def _follow_moves(entry: _Entry, snapshot: Snapshot) -> set[int] | None:
    """Move the entry's rows to where the nodes are now. Return the rows that changed, or None to score all nodes."""
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
            source = change.source  # -1, for a new node, takes the last element: the appended one
            pending = np.zeros(len(entry.scores.totals) + 1, dtype=bool)
            pending[list(rows)] = True
            entry.scores.blocks = None
            entry.scores.totals = np.append(entry.scores.totals, -np.inf)[source]
            entry.scores.devices = np.append(entry.scores.devices, np.int16(-1))[source]
            entry.fresh = np.append(entry.fresh, False)[source]
            rows = set(np.flatnonzero(pending[source]).tolist())
        rows.update(change.rows)
    return rows
