"""A picture of all nodes at one instant. Each row is a node, and rows are in the order of the node ids.

A part is a snapshot of some of the nodes. After a change, filters and scorers see only the part that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from roost.placement.model import Node, NodeType, Request
from roost.placement.tables import columns as cols

from .changes import Change, History
from .columns import BoolArray, Columns, FloatArray, IntArray

__all__ = ["BoolArray", "Columns", "FloatArray", "IntArray", "Snapshot"]

_PENDING = 256
"""At most this many changes of nodes wait to be written to the columns."""
_PAGE = 512
"""The number of nodes stored together. A change copies one page, not all nodes."""
_MASKS = 256
"""At most this many results of `Snapshot.mask` are kept."""


class Snapshot:
    """An immutable picture of all nodes, with a version. ``Snapshot.of`` creates the first, ``apply`` the next ones.

    >>> first = Snapshot.of([Node(id="a", cpus=4), Node(id="b", cpus=8)])
    >>> second = first.apply(removed=["a"])
    >>> second.nodes, second.version, first.nodes
    (('b',), 2, ('a', 'b'))
    """

    ages: FloatArray
    """(n,) the age of each node's metrics in seconds; NaN if it has none."""
    models: tuple[str, ...]
    """The device models, which ``columns.device_model`` refers to by their position."""
    version: int
    history: History
    node_types: tuple[NodeType, ...] = ()
    """The kinds of nodes that the cluster could start, as far as they are known, in the order of their names."""
    may_grow = False
    """True if nodes may come of kinds that ``node_types`` lacks. Then no request is refused for good."""
    _whole: Snapshot | None = None  # for a part: the snapshot that it belongs to
    _at: IntArray  # for a part: its rows in the whole
    _is_emptied = False  # True if the promises of the nodes in _pages no longer count

    def __init__(
        self, nodes: Sequence[Node], columns: Columns, models: tuple[str, ...], version: int, history: History
    ) -> None:
        self._pages = tuple(tuple(nodes[i : i + _PAGE]) for i in range(0, len(nodes), _PAGE))
        self._ids = tuple(node.id for node in nodes)
        self._rows = {node_id: row for row, node_id in enumerate(self._ids)}
        self.columns = self._base = columns  # the base is without _pending and the age of metrics
        self._pending: tuple[Change, ...] = ()
        self.ages = columns.metrics_age_s
        self.models, self.version, self.history = models, version, history
        # the masks with their tests, and the fresh nodes by the age limit; each says if it is True for all nodes
        self._masks: dict[Any, tuple[Callable[[Node], bool], BoolArray, bool]] = {}
        self._fresh: dict[float, tuple[BoolArray, bool]] = {}

    @classmethod
    def of(cls, nodes: Iterable[Node], version: int = 1) -> Snapshot:
        """Return a first snapshot. Raises ``ValueError`` if two nodes have the same id."""
        ordered = sorted(nodes, key=lambda node: node.id)
        for one, next_one in pairwise(ordered):
            if one.id == next_one.id:
                raise ValueError(f"two nodes have the id {one.id!r}; give each its own.")
        models = _add_models((), ordered)
        return cls(ordered, cols.build_columns(ordered, models), models, version, History(version))

    def __len__(self) -> int:
        return len(self._ids) if self._whole is None else len(self._at)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._rows if self._whole is None else node_id in self.nodes

    def __repr__(self) -> str:
        return f"Snapshot(version={self.version}, nodes={len(self)})"

    @property
    def _root(self) -> Snapshot:
        return self if self._whole is None else self._whole

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node ids, in the order of the rows."""
        return self._ids if self._whole is None else tuple(self._whole._ids[row] for row in self._at)

    def row(self, node_id: str) -> int:
        """Return the node's row. Raises ``KeyError`` for an unknown node and for one outside this part."""
        row = self._root._rows[node_id]
        if self._whole is None:
            return row
        found = np.flatnonzero(self._at == row)
        if not len(found):
            raise KeyError(node_id)
        return int(found[0])

    def node(self, node_id: str) -> Node:
        """Return the node, with the age of its metrics in this snapshot.

        Raises the same errors as ``row``.
        """
        return self.at(self.row(node_id))

    @cached_property
    def columns(self) -> Columns:
        """The nodes as arrays. The first read copies the arrays that changed, O(n) bytes each."""
        changes = ((c.rows, c.values, c.columns) for c in self._pending if c.values is not None)
        self._base = columns = cols.apply_changes(self._base, changes).replace(metrics_age_s=self.ages)
        self._pending = ()  # last: another thread may apply a change twice, but must not miss one
        return columns

    def at(self, row: int) -> Node:
        """Return the node in that row, with the age of its metrics in this snapshot."""
        if self._whole is not None:
            return self._whole.at(int(self._at[row]))
        node = self.raw(row)
        if node.metrics_age_s is None:
            return node
        age_s = float(self.ages[row])
        return node if node.metrics_age_s == age_s else replace(node, metrics_age_s=age_s)

    def raw(self, row: int) -> Node:
        """Return the node in that row of a whole snapshot. The age of its metrics may be out of date."""
        return self._pages[row // _PAGE][row % _PAGE]

    def part(self, rows: IntArray, columns: Columns | None = None) -> Snapshot:
        """Return these rows as a snapshot, in O(1). ``columns`` are their columns, if known."""
        part = Snapshot.__new__(Snapshot)
        part._whole = self if self._whole is None else self._whole
        part._at = rows if self._whole is None else self._at.take(rows)
        part.columns = self.columns.part(rows) if columns is None else columns
        part.models, part.version, part.history = self.models, self.version, self.history
        part._masks, part._fresh, part._is_emptied = self._masks, self._fresh, self._is_emptied
        return part

    def pick(self, rows: Iterable[int]) -> Snapshot:
        """Return a few nodes as a whole snapshot, in that order. O(devices of these nodes)."""
        nodes = [self.at(row) for row in rows]
        columns = cols.build_columns(nodes, self.models)
        return Snapshot(nodes, columns, self.models, self.version, History(self.version))

    def apply(self, upserts: Iterable[Node] = (), removed: Iterable[str] = ()) -> Snapshot:
        """Return the next version, with nodes replaced, added or removed. This snapshot does not change.

        Unknown ids in ``removed`` are ignored. A node in both arguments is replaced. The cost is O(changed nodes), and
        O(n) bytes now and then. It is O(n log n) if nodes or devices come or go. Parts have no next version.
        """
        new = {node.id: node for node in upserts}
        gone = frozenset(i for i in removed if i in self._rows and i not in new)
        new = {i: node for i, node in new.items() if i not in self._rows or self.node(i) != node}
        before = [self.node(i) for i in new if i in self._rows]
        if (
            gone
            or len(before) < len(new)
            or any(_list_models(old) != _list_models(new[old.id]) for old in before)
        ):
            return self._reshape(new, gone, _add_models(self.models, new.values()))
        rows, nodes = [self._rows[i] for i in new], list(new.values())
        values, names = cols.compare_nodes(before, nodes, self.models, self._base.device_model.shape[1])
        change = Change(tuple(rows), None, values, names)
        pending = (*self._pending, change)  # before _copy reads the base: see columns
        ages = cols.update_ages(self.ages, rows, nodes)
        after = self._copy(
            _pending=pending,
            _pages=_replace_nodes(self._pages, rows, nodes),
            ages=ages,
            version=self.version + 1,
            history=self._continue_history(change),
            _masks=self._masks_after(before, nodes, rows),
            _fresh=cols.update_fresh(self._fresh, ages, rows),
        )
        if len(pending) >= _PENDING:
            _ = after.columns  # so that the pending changes do not grow without bound
        return after

    def older_by(self, elapsed_s: float) -> Snapshot:
        """Return the same snapshot, with the same version, but with metrics that are ``elapsed_s`` older."""
        return self._copy(ages=self.ages + elapsed_s, _fresh={})

    def with_ages(self, ages: FloatArray) -> Snapshot:
        """Return the same snapshot, with the same version, but with other ages of the metrics: (n,) seconds."""
        return self._copy(ages=ages, _fresh={})

    def with_node_types(self, node_types: Iterable[NodeType], *, may_grow: bool = False) -> Snapshot:
        """Return the same snapshot, with the same version, of a cluster that could start such nodes."""
        types = tuple(sorted(node_types, key=lambda each: each.name))
        return self._copy(node_types=types, may_grow=may_grow)

    def as_empty(self) -> Snapshot:
        """Return the same nodes without promises, kernels and draining. A node refused here is refused as *never*."""
        part = self.part(np.arange(len(self)), cols.empty_columns(self.columns))
        part._is_emptied = True
        return part

    def has_fresh_metrics(self, stale_after_s: float) -> BoolArray:
        """Return (n,) True if the node has metrics that are at most ``stale_after_s`` old."""
        fresh = (self._fresh.get(stale_after_s) or self._find_fresh(stale_after_s))[0]
        return fresh if self._whole is None else fresh[self._at]

    def all_fresh(self, stale_after_s: float) -> bool:
        """True if all nodes of the whole snapshot have fresh metrics."""
        return (self._fresh.get(stale_after_s) or self._find_fresh(stale_after_s))[1]

    def _find_fresh(self, stale_after_s: float) -> tuple[BoolArray, bool]:
        fresh = self._root.ages <= stale_after_s
        self._fresh[stale_after_s] = fresh, bool(fresh.all())
        return self._fresh[stale_after_s]

    def without_stale_metrics(self, stale_after_s: float) -> Snapshot:
        """Return the snapshot with unknown real use for nodes with stale metrics. Scorers get this."""
        if self.all_fresh(stale_after_s):
            return self
        stale = ~self.has_fresh_metrics(stale_after_s)
        if not stale.any():
            return self
        return self.part(np.arange(len(self)), cols.forget_metrics(self.columns, stale))

    def mask(self, key: Any, test: Callable[[Node], bool]) -> BoolArray:
        """Return for each node whether it passes ``test``: (n,). Later snapshots of the cluster reuse it by ``key``.

        ``test`` may read a node's id, labels, taints, ``warm`` and ``is_draining``, but no amounts.
        """
        mask = (self._masks.get(key) or self._find_mask(key, test))[1]
        return mask if self._whole is None else mask[self._at]

    def is_everywhere(self, key: Any, test: Callable[[Node], bool]) -> bool:
        """True if all nodes of the whole snapshot pass ``test``. The answer is kept like a ``mask``."""
        return (self._masks.get(key) or self._find_mask(key, test))[2]

    def _find_mask(
        self, key: Any, test: Callable[[Node], bool]
    ) -> tuple[Callable[[Node], bool], BoolArray, bool]:
        mask = np.array([test(node) for page in self._root._pages for node in page], dtype=bool)
        known = test, mask, bool(mask.all())
        if len(self._masks) < _MASKS:
            self._masks[key] = known
        return known

    def has_labels(self, labels: Iterable[tuple[str, str]]) -> BoolArray:
        """Return (n,) True if the node has all of these labels."""
        has = np.ones(len(self), dtype=bool)
        for name, value in labels:
            has &= self.mask(("label", name, value), lambda node, n=name, v=value: node.label(n) == v)  # type: ignore[misc]
        return has

    def resource_free(self, name: str) -> FloatArray:
        """Return (n,) the amount of a custom resource that is not promised. O(n) nodes are read on each call."""
        rows = range(len(self)) if self._whole is None else self._at.tolist()
        nodes = map(self._root.raw, rows)
        if self._is_emptied:
            return np.fromiter((node.resources.get(name, 0.0) for node in nodes), np.float64, len(rows))
        return np.fromiter((node.resource_free(name) for node in nodes), np.float64, len(rows))

    def kernels_of(self, user: str) -> IntArray:
        """Return (n,) how many kernels of a user run or start on each node. O(n) nodes are read on each call.

        A filter or a scorer of a ``Pipeline`` must not read it: its answer must not depend on the user.
        """
        rows = range(len(self)) if self._whole is None else self._at.tolist()
        if self._is_emptied:
            return np.zeros(len(rows), dtype=np.int64)
        return np.fromiter((self._root.raw(row).kernels_of(user) for row in rows), np.int64, len(rows))

    def accepted_devices(self, request: Request) -> BoolArray:
        """Return (n, d) True if the request accepts the model of the device."""
        if not request.gpu_models:
            return self.columns.device_model >= 0
        accepted = np.array([request.accepts_model(model) for model in self.models] + [False], dtype=bool)
        accepts: BoolArray = accepted[self.columns.device_model]  # -1, for no device, takes the last element
        return accepts

    @classmethod
    def from_dict(cls, data: Any) -> Snapshot:
        """Return the snapshot of saved nodes (``Node.to_dict``). Raises ``ValueError`` for other data."""
        if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
            raise ValueError("a saved snapshot has a list of nodes; `roost nodes --json` writes one.")
        nodes = cls.of(Node.from_dict(node) for node in data["nodes"])
        return nodes.with_node_types(map(NodeType.from_dict, data.get("node_types", ())))

    def _copy(self, **changed: Any) -> Snapshot:
        after = Snapshot.__new__(Snapshot)
        vars(after).update(vars(self))
        vars(after).pop("columns", None)
        vars(after).update(changed)
        return after

    def _continue_history(self, change: Change) -> History:
        history = self.history
        if history.last != self.version:  # another snapshot continued this one first: start a new line
            changes = history.between(history.first, self.version)
            history = History(history.first if changes is not None else self.version, changes or ())
        history.add(change, len(self))
        return history

    def _masks_after(
        self, before: Sequence[Node], nodes: Sequence[Node], rows: Sequence[int]
    ) -> dict[Any, Any]:
        """Return the masks after these nodes changed. Only nodes with other labels, taints and so on are tested."""
        moved = [i for i, old in enumerate(before) if _list_traits(nodes[i]) != _list_traits(old)]
        if not moved:
            return self._masks
        masks = {}
        for key, (test, mask, _) in self._masks.items():
            mask = mask.copy()
            mask[[rows[i] for i in moved]] = [test(nodes[i]) for i in moved]
            masks[key] = test, mask, bool(mask.all())
        return masks

    def _reshape(self, new: dict[str, Node], gone: frozenset[str], models: tuple[str, ...]) -> Snapshot:
        kept = [row for row, i in enumerate(self._ids) if i not in gone and i not in new]
        nodes = [self._pages[row // _PAGE][row % _PAGE] for row in kept] + list(new.values())
        order = np.array(sorted(range(len(nodes)), key=lambda place: nodes[place].id), dtype=np.int64)
        added = cols.build_columns(list(new.values()), models)
        columns = cols.reshape_columns(self.columns, kept, added, order)
        source = np.array([*kept, *([-1] * len(new))], dtype=np.int64)[order]
        history = self._continue_history(Change(tuple(np.flatnonzero(source < 0).tolist()), source))
        after = Snapshot([nodes[place] for place in order], columns, models, self.version + 1, history)
        after.node_types, after.may_grow = self.node_types, self.may_grow
        return after


def _replace_nodes(
    pages: tuple[tuple[Node, ...], ...], rows: Sequence[int], nodes: Sequence[Node]
) -> tuple[tuple[Node, ...], ...]:
    after = list(pages)
    for row, node in zip(rows, nodes, strict=True):
        page = list(after[row // _PAGE])
        page[row % _PAGE] = node
        after[row // _PAGE] = tuple(page)
    return tuple(after)


def _list_models(node: Node) -> tuple[str, ...]:
    return tuple(device.model for device in node.devices)


def _add_models(known: tuple[str, ...], nodes: Iterable[Node]) -> tuple[str, ...]:
    models = dict.fromkeys((*known, *(device.model for node in nodes for device in node.devices)))
    return known if len(models) == len(known) else tuple(models)


def _list_traits(node: Node) -> tuple[Any, ...]:
    return node.labels, node.taints, node.warm, node.is_draining
