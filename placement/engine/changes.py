"""What changed from version to version of a snapshot, so that what was worked out for one need not be for the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .columns import IntArray, Table

_REMEMBERED = 4096
"""At most so many changes are remembered, so that scores can be brought up to date instead of made anew."""
_AT_LEAST = 64
"""On a small cluster no more than it has nodes, and these: there making scores anew is cheap, and memory is not."""


class Change(NamedTuple):
    """What one version changed: ids that came, changed or went; rows (as this version numbers them) to look at again.

    Where no row moved, ``values`` has what is in those rows now, different in ``columns``. Else ``source`` is for each
    row the one it had before, -1 for a new one.
    """

    ids: tuple[str, ...]
    rows: tuple[int, ...]
    source: IntArray | None = None
    values: Table | None = None
    columns: frozenset[str] = frozenset()


class History:
    """The changes of one line of snapshots, shared by all of them; the last one adds."""

    __slots__ = ("_ends", "_rows", "changes", "first", "moved")

    def __init__(self, first: int, changes: Sequence[Change] = ()) -> None:
        self.first = first
        self.changes: list[Change] = []
        self.moved = first
        """The last version that gave nodes other rows."""
        self._rows: list[int] = []  # those of all changes, one after the other
        self._ends: list[int] = [0]
        for change in changes:
            self.add(change, len(changes))

    @property
    def last(self) -> int:
        return self.first + len(self.changes)

    def between(self, version: int, until: int) -> list[Change] | None:
        """What changed after ``version``; None when that is too long ago, or later."""
        if not self.first <= version <= until:
            return None
        return self.changes[version - self.first : until - self.first]

    def rows_between(self, version: int, until: int) -> set[int] | None:
        """The rows that changed after ``version``; None when that is too long ago, or rows moved since."""
        if not max(self.first, self.moved) <= version <= until:
            return None
        return set(self._rows[self._ends[version - self.first] : self._ends[until - self.first]])

    def add(self, change: Change, nodes: int) -> None:
        """One more version, of a cluster of so many nodes."""
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
