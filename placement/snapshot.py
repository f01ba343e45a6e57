"""All nodes at one instant. A row is a node; rows are in the order of the node ids, so that the first of equals
is the one with the smallest id. Devices are a second dimension, in each node's own order.

A part is a snapshot of some of the nodes: filters and scorers see parts, since after a change only the rows that
changed are rated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from . import columns as cols
from .columns import BoolArray, Columns, FloatArray, IntArray
from .values import Node, Request

__all__ = ["BoolArray", "Columns", "FloatArray", "IntArray", "Snapshot"]

_REMEMBERED = 4096
"""Changes that are remembered, so that scores can be brought up to date instead of made anew."""
_MASKS = 256
"""Answers to questions about nodes' labels and the like that are kept."""


class Change(NamedTuple):
    """What one version changed: ids that came, changed or went; rows (as this version numbers them) to look at again.

    ``source`` is for each row the one it had before, -1 for a new one; None where no row moved.
    """

    ids: tuple[str, ...]
    rows: tuple[int, ...]
    source: IntArray | None


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
            self.add(change)

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

    def add(self, change: Change) -> None:
        self.changes.append(change)
        if change.source is not None:
            self.moved = self.last
        self._rows.extend(change.rows)
        self._ends.append(len(self._rows))
        if len(self.changes) > 2 * _REMEMBERED:
            self.first += _REMEMBERED
            del self.changes[:_REMEMBERED], self._ends[:_REMEMBERED]
            forgotten = self._ends[0]
            del self._rows[:forgotten]
            self._ends = [end - forgotten for end in self._ends]


class Snapshot:
    """An immutable, versioned picture of all nodes. Made by ``Snapshot.of``, continued by ``apply``.

    >>> first = Snapshot.of([Node(id="a", cpus=4), Node(id="b", cpus=8)])
    >>> second = first.apply(removed=["a"])
    >>> second.nodes, second.version, sorted(second.changed_since(first.version))
    (('b',), 2, ['a'])
    """

    __slots__ = (
        "_at",
        "_everywhere",
        "_fresh",
        "_ids",
        "_is_fresh",
        "_masks",
        "_nodes",
        "_rows",
        "_whole",
        "columns",
        "history",
        "models",
        "version",
    )

    columns: Columns
    models: tuple[str, ...]
    """The device models that ``columns.device_model`` counts."""
    version: int
    history: History
    _whole: Snapshot | None  # of which this is a part: the rows _at
    _at: IntArray
    _ids: tuple[str, ...]
    _nodes: Sequence[Node]
    _rows: dict[str, int]
    _masks: dict[Any, tuple[Callable[[Node], bool], BoolArray]]
    _fresh: dict[float, BoolArray]
    _is_fresh: dict[float, bool]
    _everywhere: dict[Any, bool]

    @classmethod
    def of(cls, nodes: Iterable[Node], version: int = 1) -> Snapshot:
        """A first snapshot. Raises ``ValueError`` when two nodes have the same id."""
        ordered = sorted(nodes, key=lambda node: node.id)
        for one, next_one in pairwise(ordered):
            if one.id == next_one.id:
                raise ValueError(f"two nodes have the id {one.id!r}; give each its own.")
        models = _models((), ordered)
        return _made(ordered, cols.columns_of(ordered, models), models, version, History(version))

    def __len__(self) -> int:
        return len(self._ids) if self._whole is None else len(self._at)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._rows if self._whole is None else node_id in self.nodes

    def __repr__(self) -> str:
        return f"Snapshot(version={self.version}, nodes={len(self)})"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node ids, in the order of the rows."""
        if self._whole is None:
            return self._ids
        return tuple(self._whole._ids[row] for row in self._at)

    def row(self, node_id: str) -> int:
        """The node's row in the columns; raises ``KeyError`` when it is not there."""
        if self._whole is None:
            return self._rows[node_id]
        return int(np.flatnonzero(self._at == self._whole._rows[node_id])[0])

    def node(self, node_id: str) -> Node:
        """The node of that id, its metrics as old as the snapshot says; ``KeyError`` when it is not there."""
        return self.at(self.row(node_id))

    def at(self, row: int) -> Node:
        """The node in that row, its metrics as old as the snapshot says."""
        node = self._nodes[row] if self._whole is None else self._whole._nodes[self._at[row]]
        if node.metrics_age_s is None:
            return node
        age_s = float(self.columns.metrics_age_s[row])
        return node if node.metrics_age_s == age_s else replace(node, metrics_age_s=age_s)

    def part(self, rows: IntArray) -> Snapshot:
        """These rows as a snapshot of their own, in that order; same models and version. O(1)."""
        part = Snapshot()
        part._whole = self if self._whole is None else self._whole
        part._at = rows if self._whole is None else self._at[rows]
        part.columns = self.columns.part(rows)
        part.models, part.version, part.history = self.models, self.version, self.history
        return part

    def apply(self, upserts: Iterable[Node] = (), removed: Iterable[str] = ()) -> Snapshot:
        """The next version, with these nodes replaced or added and those gone; this snapshot stays as it is.

        Ids in ``removed`` that are unknown are ignored; a node in both is replaced. O(n) in copied bytes, and
        only for columns that changed; O(n log n) when nodes come or go. Not for parts.
        """
        new = {node.id: node for node in upserts}
        gone = frozenset(removed).intersection(self._rows) - new.keys()
        new = {i: node for i, node in new.items() if i not in self._rows or self.node(i) != node}
        models = _models(self.models, new.values())
        if gone or not new.keys() <= self._rows.keys():
            return self._reshaped(new, gone, models)
        rows = [self._rows[i] for i in new]
        nodes = list(self._nodes)
        for row, node in zip(rows, new.values(), strict=True):
            nodes[row] = node
        columns = cols.updated(self.columns, rows, cols.columns_of(list(new.values()), models))
        return self._with(
            _nodes=nodes,
            columns=columns,
            models=models,
            version=self.version + 1,
            history=self._continued(Change(tuple(new), tuple(rows), None)),
            _masks=self._masks_after(nodes, rows),
            _fresh=_fresh_after(self._fresh, columns, rows),
        )

    def aged(self, elapsed_s: float) -> Snapshot:
        """The same picture and version ``elapsed_s`` later: every metric is that much older."""
        older = self.columns.metrics_age_s + elapsed_s
        return self._with(columns=self.columns.replaced(metrics_age_s=older), _fresh={})

    def emptied(self) -> Snapshot:
        """The same nodes with nothing promised and nothing running: what refuses here refuses for ever."""
        columns = cols.emptied(self.columns)
        if self._whole is None:
            return self._with(columns=columns, history=History(self.version))
        part = self.part(np.arange(len(self)))
        part.columns = columns
        return part

    def changed_since(self, version: int) -> frozenset[str] | None:
        """Ids of the nodes added, changed or removed after that version; None when that is too long ago."""
        changes = self.history.between(version, self.version)
        if changes is None:
            return None
        return frozenset(node_id for change in changes for node_id in change.ids)

    def has_fresh_metrics(self, stale_after_s: float) -> BoolArray:
        """(n,) True where the node has metrics not older than that."""
        if self._whole is not None:
            return self.columns.metrics_age_s <= stale_after_s
        fresh = self._fresh.get(stale_after_s)
        if fresh is None:
            fresh = self._fresh[stale_after_s] = self.columns.metrics_age_s <= stale_after_s
        return fresh

    def _all_fresh(self, stale_after_s: float) -> bool:
        if stale_after_s not in self._is_fresh:
            self._is_fresh[stale_after_s] = bool(self.has_fresh_metrics(stale_after_s).all())
        return self._is_fresh[stale_after_s]

    def without_stale_metrics(self, stale_after_s: float) -> Snapshot:
        """For scorers: the same, with real use unknown where it was measured too long ago."""
        if self._whole is not None and self._whole._all_fresh(stale_after_s):
            return self
        stale = ~self.has_fresh_metrics(stale_after_s)
        if not stale.any():
            return self
        part = self.part(np.arange(len(self)))
        part.columns = cols.without_metrics(self.columns, stale)
        return part

    def mask(self, key: Any, test: Callable[[Node], bool]) -> BoolArray:
        """(n,) True for the nodes that pass ``test``, which looks at labels, taints and the like, not at amounts.

        Kept under ``key`` for the next call, and brought up to date with each version.
        """
        if self._whole is not None:
            return self._whole.mask(key, test)[self._at]
        known = self._masks.get(key)
        if known is None:
            known = test, np.array([test(node) for node in self._nodes], dtype=bool)
            if len(self._masks) < _MASKS:
                self._masks[key] = known
        return known[1]

    def is_everywhere(self, key: Any, test: Callable[[Node], bool]) -> bool:
        """Whether all nodes of the whole snapshot pass ``test``, kept like ``mask``."""
        if self._whole is not None:
            return self._whole.is_everywhere(key, test)
        if key not in self._everywhere:
            self._everywhere[key] = bool(self.mask(key, test).all())
        return self._everywhere[key]

    def has_labels(self, labels: Iterable[tuple[str, str]]) -> BoolArray:
        """(n,) True where the node has all of these labels."""
        has = np.ones(len(self), dtype=bool)
        for name, value in labels:
            has &= self.mask(("label", name, value), lambda node, n=name, v=value: node.labels.get(n) == v)  # type: ignore[misc]
        return has

    def accepted_devices(self, request: Request) -> BoolArray:
        """(n, d) True for the devices whose model the request accepts."""
        if not request.gpu_models:
            return self.columns.device_model >= 0
        accepted = np.array([request.accepts_model(model) for model in self.models] + [False], dtype=bool)
        accepts: BoolArray = accepted[self.columns.device_model]  # -1, no device, is the last entry
        return accepts

    def to_dict(self) -> dict[str, Any]:
        """The nodes as JSON types; ``from_dict`` is the inverse, but for the version."""
        return {"nodes": [self.at(row).to_dict() for row in range(len(self))]}

    @classmethod
    def from_dict(cls, data: Any) -> Snapshot:
        """Reads ``to_dict``'s form; raises ``ValueError`` for anything else."""
        if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
            raise ValueError(
                "a saved snapshot is an object with a list of nodes; `roost nodes --json` writes one."
            )
        return cls.of(Node.from_dict(node) for node in data["nodes"])

    def _with(self, **changed: object) -> Snapshot:
        after = Snapshot()
        after._whole = None
        after._is_fresh, after._everywhere = {}, {}
        for name in (
            "_ids",
            "_nodes",
            "_rows",
            "_masks",
            "_fresh",
            "columns",
            "history",
            "models",
            "version",
        ):
            setattr(after, name, changed.get(name, getattr(self, name)))
        return after

    def _continued(self, change: Change) -> History:
        history = self.history
        if history.last != self.version:  # another snapshot already continued this one: a line of its own
            changes = history.between(history.first, self.version)
            history = History(history.first if changes is not None else self.version, changes or ())
        history.add(change)
        return history

    def _masks_after(self, nodes: Sequence[Node], rows: Sequence[int]) -> dict[Any, Any]:
        """The kept masks, looked at again for nodes that changed in what they look at."""
        moved = [row for row in rows if _traits(nodes[row]) != _traits(self._nodes[row])]
        if not moved:
            return self._masks
        masks = {}
        for key, (test, mask) in self._masks.items():
            mask = mask.copy()
            mask[moved] = [test(nodes[row]) for row in moved]
            masks[key] = test, mask
        return masks

    def _reshaped(self, new: dict[str, Node], gone: frozenset[str], models: tuple[str, ...]) -> Snapshot:
        kept = [row for row, i in enumerate(self._ids) if i not in gone and i not in new]
        nodes = [self._nodes[row] for row in kept] + list(new.values())
        order = np.array(sorted(range(len(nodes)), key=lambda place: nodes[place].id), dtype=np.int64)
        columns = cols.reshaped(self.columns, kept, cols.columns_of(list(new.values()), models), order)
        source = np.array([*kept, *([-1] * len(new))], dtype=np.int64)[order]
        ids = tuple(sorted(gone | new.keys()))
        history = self._continued(Change(ids, tuple(np.flatnonzero(source < 0)), source))
        return _made([nodes[place] for place in order], columns, models, self.version + 1, history)


def _made(
    nodes: Sequence[Node], columns: Columns, models: tuple[str, ...], version: int, history: History
) -> Snapshot:
    made = Snapshot()
    made._whole = None
    made._nodes, made._ids = nodes, tuple(node.id for node in nodes)
    made._rows = {node_id: row for row, node_id in enumerate(made._ids)}
    made.columns, made.models, made.version, made.history = columns, models, version, history
    made._masks, made._fresh, made._is_fresh, made._everywhere = {}, {}, {}, {}
    return made


def _models(known: tuple[str, ...], nodes: Iterable[Node]) -> tuple[str, ...]:
    seen = dict.fromkeys(known)
    for node in nodes:
        seen.update(dict.fromkeys(device.model for device in node.devices))
    return known if len(seen) == len(known) else tuple(seen)


def _traits(node: Node) -> tuple[Any, ...]:
    return node.labels, node.taints, node.warm


def _fresh_after(
    known: dict[float, BoolArray], columns: Columns, rows: Sequence[int]
) -> dict[float, BoolArray]:
    after = {}
    for limit, mask in known.items():
        mask = mask.copy()
        mask[rows] = columns.metrics_age_s[rows] <= limit
        after[limit] = mask
    return after
