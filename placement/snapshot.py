"""All nodes at one instant. A row is a node; rows are in the order of the node ids, so that the first of equals
is the one with the smallest id. Devices are a second dimension, in each node's own order.

A part is a snapshot of some of the nodes: filters and scorers see parts, since after a change only the rows that
changed are rated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from roost.placement.engine import columns as cols
from roost.placement.engine.changes import Change, History
from roost.placement.engine.columns import BoolArray, Columns, FloatArray, IntArray

from .model import Node, Request

__all__ = ["BoolArray", "Columns", "FloatArray", "IntArray", "Snapshot"]

_PENDING = 256
"""At most so many changes wait for somebody to ask for the columns."""
_PAGE = 512
_MASKS = 256
"""Answers to questions about nodes' labels and the like that are kept."""


class Snapshot:
    """An immutable, versioned picture of all nodes. Made by ``Snapshot.of``, continued by ``apply``.

    >>> first = Snapshot.of([Node(id="a", cpus=4), Node(id="b", cpus=8)])
    >>> second = first.apply(removed=["a"])
    >>> second.nodes, second.version, sorted(second.changed_since(first.version))
    (('b',), 2, ['a'])
    """

    __slots__ = (
        "_at",
        "_base",
        "_everywhere",
        "_fresh",
        "_ids",
        "_is_emptied",
        "_is_fresh",
        "_masks",
        "_pages",
        "_pending",
        "_rows",
        "_whole",
        "ages",
        "columns",
        "history",
        "models",
        "version",
    )

    columns: Columns
    """The nodes as arrays. O(n) bytes for those that changed, when they are first asked for."""
    ages: FloatArray
    """(n,) of the metrics of each node, in seconds; NaN where there are none."""
    models: tuple[str, ...]
    """The device models that ``columns.device_model`` counts."""
    version: int
    history: History
    _whole: Snapshot | None  # of which this is a part: the rows _at
    _at: IntArray
    _ids: tuple[str, ...]
    _pages: tuple[tuple[Node, ...], ...]  # the nodes, _PAGE together, so that one can be replaced in passing
    _base: Columns  # without the age of metrics; with the changes _pending on it, the columns
    _pending: tuple[Change, ...]
    _rows: dict[str, int]
    _masks: dict[Any, tuple[Callable[[Node], bool], BoolArray]]
    _fresh: dict[float, BoolArray]
    _is_fresh: dict[float, bool]
    _is_emptied: bool  # of what is promised, which only the nodes in _pages still say
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

    def __getattr__(self, name: str) -> Any:
        if name != "columns":
            raise AttributeError(name)
        changes = ((c.rows, c.values, c.columns) for c in self._pending if c.values is not None)
        self._base = self.columns = cols.updated(self._base, changes).replaced(metrics_age_s=self.ages)
        self._pending = ()  # last, as it does no harm if another thread makes a change twice
        return self.columns

    def at(self, row: int) -> Node:
        """The node in that row, its metrics as old as the snapshot says."""
        if self._whole is not None:
            return self._whole.at(int(self._at[row]))
        node = self.stored(row)
        if node.metrics_age_s is None:
            return node
        age_s = float(self.ages[row])
        return node if node.metrics_age_s == age_s else replace(node, metrics_age_s=age_s)

    def stored(self, row: int) -> Node:
        """The same of a whole snapshot, its metrics as old as when it was last read: all else is as it is now."""
        return self._pages[row // _PAGE][row % _PAGE]

    def part(self, rows: IntArray, columns: Columns | None = None) -> Snapshot:
        """These rows as a snapshot of their own, in that order; same models and version. O(1).

        ``columns`` are theirs, where the caller has them at hand.
        """
        part = Snapshot()
        part._whole = self if self._whole is None else self._whole
        part._at = rows if self._whole is None else self._at.take(rows)
        part.columns = self.columns.part(rows) if columns is None else columns
        part.models, part.version, part.history = self.models, self.version, self.history
        part._everywhere, part._is_emptied = self._everywhere, self._is_emptied
        return part

    def only(self, row: int) -> Snapshot:
        """One node as a snapshot of its own, whatever the size of this one."""
        node = self.at(row)
        return _made(
            [node], cols.columns_of([node], self.models), self.models, self.version, History(self.version)
        )

    def apply(self, upserts: Iterable[Node] = (), removed: Iterable[str] = ()) -> Snapshot:
        """The next version, with these nodes replaced or added and those gone; this snapshot stays as it is.

        Ids in ``removed`` that are unknown are ignored; a node in both is replaced. O(changed nodes), and O(n) bytes
        now and then; O(n log n) when nodes or devices come or go. Not for parts.
        """
        new = {node.id: node for node in upserts}
        gone = frozenset(i for i in removed if i in self._rows and i not in new)
        new = {i: node for i, node in new.items() if i not in self._rows or self.node(i) != node}
        before = [self.node(i) for i in new if i in self._rows]
        if gone or len(before) < len(new) or any(_devices(old) != _devices(new[old.id]) for old in before):
            return self._reshaped(new, gone, _models(self.models, new.values()))
        rows = [self._rows[i] for i in new]
        nodes = list(new.values())
        width = self._base.device_model.shape[1]
        values, names = cols.difference(before, nodes, self.models, width)
        change = Change(tuple(new), tuple(rows), None, values, names)
        pending = (*self._pending, change)
        after = self._with(
            _pending=pending,  # what it adds to, the base, is looked at after it
            _pages=_replaced(self._pages, rows, nodes),
            ages=cols.ages_after(self.ages, rows, nodes),
            version=self.version + 1,
            history=self._continued(change),
            _masks=self._masks_after(before, nodes, rows),
        )
        after._fresh = cols.fresh_after(self._fresh, after.ages, rows)
        if after._fresh is self._fresh:
            after._is_fresh = self._is_fresh
        if after._masks is self._masks:
            after._everywhere = self._everywhere
        if len(pending) >= _PENDING:
            _ = after.columns  # once in a while, or what waits would grow
        return after

    def older_by(self, elapsed_s: float) -> Snapshot:
        """The same picture and version ``elapsed_s`` later: every metric is that much older."""
        return self._with(ages=self.ages + elapsed_s, _fresh={})

    def as_empty(self) -> Snapshot:
        """The same nodes with nothing promised and nothing running: what refuses here refuses for ever."""
        columns = cols.empty_columns(self.columns)
        if self._whole is None:
            return self._with(_pending=(), _base=columns, history=History(self.version), _is_emptied=True)
        part = self.part(np.arange(len(self)), columns)
        part._is_emptied = True
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
            return self._whole.has_fresh_metrics(stale_after_s)[self._at]
        fresh = self._fresh.get(stale_after_s)
        if fresh is None:
            fresh = self._fresh[stale_after_s] = self.ages <= stale_after_s
        return fresh

    def all_fresh(self, stale_after_s: float) -> bool:
        """Whether all nodes of a whole snapshot have fresh metrics; kept for the next call."""
        if stale_after_s not in self._is_fresh:
            self._is_fresh[stale_after_s] = bool(self.has_fresh_metrics(stale_after_s).all())
        return self._is_fresh[stale_after_s]

    def without_stale_metrics(self, stale_after_s: float) -> Snapshot:
        """For scorers: the same, with real use unknown where it was measured too long ago."""
        if self._whole is not None and self._whole.all_fresh(stale_after_s):
            return self
        stale = ~self.has_fresh_metrics(stale_after_s)
        if not stale.any():
            return self
        return self.part(np.arange(len(self)), cols.without_metrics(self.columns, stale))

    def mask(self, key: Any, test: Callable[[Node], bool]) -> BoolArray:
        """(n,) True for the nodes that pass ``test``, which looks at labels, taints and the like, not at amounts.

        Kept under ``key`` for the next call, and brought up to date with each version.
        """
        if self._whole is not None:
            return self._whole.mask(key, test)[self._at]
        known = self._masks.get(key)
        if known is None:
            known = test, np.array([test(node) for page in self._pages for node in page], dtype=bool)
            if len(self._masks) < _MASKS:
                self._masks[key] = known
        return known[1]

    def is_everywhere(self, key: Any, test: Callable[[Node], bool]) -> bool:
        """Whether all nodes of the whole snapshot pass ``test``, kept like ``mask``."""
        known = self._everywhere.get(key)
        if known is None:
            whole = self if self._whole is None else self._whole
            known = self._everywhere[key] = bool(whole.mask(key, test).all())
        return known

    def has_labels(self, labels: Iterable[tuple[str, str]]) -> BoolArray:
        """(n,) True where the node has all of these labels."""
        has = np.ones(len(self), dtype=bool)
        for name, value in labels:
            has &= self.mask(("label", name, value), lambda node, n=name, v=value: node.labels.get(n) == v)  # type: ignore[misc]
        return has

    def resource_free(self, name: str) -> FloatArray:
        """(n,) what is not promised of a custom resource; 0 where there is none. Looks at each node, as few ask."""
        pages = self._pages if self._whole is None else self._whole._pages
        rows = range(len(self)) if self._whole is None else self._at.tolist()
        nodes = (pages[row // _PAGE][row % _PAGE] for row in rows)
        if self._is_emptied:
            return np.fromiter((node.resources.get(name, 0.0) for node in nodes), np.float64, len(rows))
        return np.fromiter((node.resource_free(name) for node in nodes), np.float64, len(rows))

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
        for name in _CARRIED:
            setattr(after, name, changed[name] if name in changed else getattr(self, name))
        return after

    def _continued(self, change: Change) -> History:
        history = self.history
        if history.last != self.version:  # another snapshot already continued this one: a line of its own
            changes = history.between(history.first, self.version)
            history = History(history.first if changes is not None else self.version, changes or ())
        history.add(change, len(self))
        return history

    def _masks_after(
        self, before: Sequence[Node], nodes: Sequence[Node], rows: Sequence[int]
    ) -> dict[Any, Any]:
        """The kept masks, looked at again for nodes that changed in what they look at."""
        moved = [i for i, old in enumerate(before) if _traits(nodes[i]) != _traits(old)]
        if not moved:
            return self._masks
        masks = {}
        for key, (test, mask) in self._masks.items():
            mask = mask.copy()
            mask[[rows[i] for i in moved]] = [test(nodes[i]) for i in moved]
            masks[key] = test, mask
        return masks

    def _reshaped(self, new: dict[str, Node], gone: frozenset[str], models: tuple[str, ...]) -> Snapshot:
        kept = [row for row, i in enumerate(self._ids) if i not in gone and i not in new]
        nodes = [self._pages[row // _PAGE][row % _PAGE] for row in kept] + list(new.values())
        order = np.array(sorted(range(len(nodes)), key=lambda place: nodes[place].id), dtype=np.int64)
        columns = cols.reshaped(self.columns, kept, cols.columns_of(list(new.values()), models), order)
        source = np.array([*kept, *([-1] * len(new))], dtype=np.int64)[order]
        ids = tuple(sorted(gone | new.keys()))
        history = self._continued(Change(ids, tuple(np.flatnonzero(source < 0).tolist()), source))
        return _made([nodes[place] for place in order], columns, models, self.version + 1, history)


_CARRIED = (
    "_pending",  # before _base: see Snapshot.__getattr__
    "_base",
    "_fresh",
    "_ids",
    "_is_emptied",
    "_masks",
    "_pages",
    "_rows",
    "ages",
    "history",
    "models",
    "version",
)


def _made(
    nodes: Sequence[Node], columns: Columns, models: tuple[str, ...], version: int, history: History
) -> Snapshot:
    made = Snapshot()
    made._whole = None
    made._pages = tuple(tuple(nodes[i : i + _PAGE]) for i in range(0, len(nodes), _PAGE))
    made._ids = tuple(node.id for node in nodes)
    made._rows = {node_id: row for row, node_id in enumerate(made._ids)}
    made.columns = made._base = columns
    made._pending, made.ages = (), columns.metrics_age_s
    made.models, made.version, made.history = models, version, history
    made._is_emptied = False
    made._masks, made._fresh, made._is_fresh, made._everywhere = {}, {}, {}, {}
    return made


def _replaced(
    pages: tuple[tuple[Node, ...], ...], rows: Sequence[int], nodes: Sequence[Node]
) -> tuple[tuple[Node, ...], ...]:
    after = list(pages)
    for row, node in zip(rows, nodes, strict=True):
        page = list(after[row // _PAGE])
        page[row % _PAGE] = node
        after[row // _PAGE] = tuple(page)
    return tuple(after)


def _devices(node: Node) -> tuple[str, ...]:
    return tuple(device.model for device in node.devices)


def _models(known: tuple[str, ...], nodes: Iterable[Node]) -> tuple[str, ...]:
    seen = dict.fromkeys(known)
    for node in nodes:
        seen.update(dict.fromkeys(device.model for device in node.devices))
    return known if len(seen) == len(known) else tuple(seen)


def _traits(node: Node) -> tuple[Any, ...]:
    return node.labels, node.taints, node.warm, node.is_draining
