"""The changes from version to version of a snapshot, so that cached results can follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .columns import IntArray, Table

_REMEMBERED = 4096
"""At least this many changes are remembered, and at most twice as many.

If cached scores are older than the remembered changes, all nodes are scored again.
"""
_AT_LEAST = 64
"""With fewer than `_REMEMBERED` nodes, one change for each node is remembered, but at least this many."""


class Change(NamedTuple):
    """The difference between two successive snapshots."""

    rows: tuple[int, ...]
    """The changed rows, as numbered in the newer snapshot."""
    source: IntArray | None = None
    """The former row of each row, or -1 for a new node; None if no node came, left or moved to another row."""
    values: Table | None = None
    """The new values of ``rows``; None if a node has moved."""
    columns: frozenset[str] = frozenset()
    """The names of the columns that differ; empty if a node has moved."""


class History:
    """The changes between successive snapshots. All these snapshots share one history, and the newest adds to it."""

    __slots__ = ("_ends", "_rows", "changes", "first", "moved")

    def __init__(self, first: int, changes: Sequence[Change] = ()) -> None:
        self.first = first
        self.changes: list[Change] = []
        self.moved = first
        """The last version in which nodes moved to other rows."""
        self._rows: list[int] = []  # the rows of all changes, one change after the other
        self._ends: list[int] = [0]
        for change in changes:
            self.add(change, len(changes))

    @property
    def last(self) -> int:
        return self.first + len(self.changes)

    def between(self, version: int, until: int) -> list[Change] | None:
        """Return the changes from ``version`` to ``until``; None if they are forgotten or ``version`` > ``until``."""
        if not self.first <= version <= until:
            return None
        return self.changes[version - self.first : until - self.first]

    def rows_between(self, version: int, until: int) -> set[int] | None:
        """Return the rows that changed from ``version`` to ``until``.

        Return None if `between` returns None, or if nodes moved to other rows after ``version``.
        """
        if not max(self.first, self.moved) <= version <= until:
            return None
        return set(self._rows[self._ends[version - self.first] : self._ends[until - self.first]])

    def add(self, change: Change, nodes: int) -> None:
        self.changes.append(change)
        if change.source is not None:
            self.moved = self.last
        self._rows.extend(change.rows)
        self._ends.append(len(self._rows))
        remembered = min(_REMEMBERED, max(_AT_LEAST, nodes))
        if len(self.changes) > 2 * remembered:
            forgotten = len(self.changes) - remembered
            self.first += forgotten
            del self.changes[:forgotten], self._ends[:forgotten]
            start = self._ends[0]
            del self._rows[:start]
            self._ends = [end - start for end in self._ends]
