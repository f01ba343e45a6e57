"""All nodes at one instant, as columns: what filters and scorers compute on.

A row is a node; rows are in the order of the node ids, so that the first of equals is the one with the
smallest id. Devices are columns of a second dimension, in each node's own order, padded to the largest node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .values import UNKNOWN_USE, Node, Request

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_REMEMBERED = 256  # versions that changed_since knows, and labels whose nodes are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The snapshot's arrays, all read-only; n nodes, d devices at most on one node. NaN means unknown."""

    cpus: FloatArray  # (n,) allocatable
    cpus_free: FloatArray  # (n,) not promised, may be negative
    cpus_used: FloatArray  # (n,)
    memory_bytes: IntArray  # (n,) allocatable
    memory_free_bytes: IntArray  # (n,) not promised, may be negative
    memory_used_bytes: FloatArray  # (n,)
    gpus: IntArray  # (n,) number of devices
    gpus_free: FloatArray  # (n,) the sum that is not promised
    kernels: IntArray  # (n,)
    is_draining: BoolArray  # (n,)
    metrics_age_s: FloatArray  # (n,)
    device_model: IntArray  # (n, d) index into Snapshot.models, -1 where there is no device
    device_free: FloatArray  # (n, d) 1 - promised, -inf where there is no device
    device_excess: FloatArray  # (n, d) Device.excess: use clearly beyond the promises


class Snapshot:
    """An immutable, versioned picture of all nodes. Made by ``Snapshot.of``, continued by ``apply``.

    >>> first = Snapshot.of([Node(id="a", cpus=4), Node(id="b", cpus=8)])
    >>> second = first.apply(removed=["a"])
    >>> second.nodes, second.version, sorted(second.changed_since(first.version))
    (('b',), 2, ['a'])
    """

    __slots__ = ("_changes", "_labels", "_nodes", "_rows", "columns", "models", "nodes", "version")

    columns: Columns
    models: tuple[str, ...]
    """The device models that ``columns.device_model`` counts."""
    nodes: tuple[str, ...]
    """The node ids, in the order of the rows."""
    version: int
    _nodes: tuple[Node, ...]
    _rows: dict[str, int]
    _changes: tuple[tuple[int, frozenset[str]], ...]  # the ids that changed with each version, oldest first
    _labels: dict[tuple[str, str], BoolArray]

    @classmethod
    def of(cls, nodes: Iterable[Node], version: int = 1) -> Snapshot:
        """A first snapshot. Raises ``ValueError`` when two nodes have the same id."""
        ordered = sorted(nodes, key=lambda node: node.id)
        for one, next_one in pairwise(ordered):
            if one.id == next_one.id:
                raise ValueError(f"two nodes have the id {one.id!r}; give each its own.")
        models = _models((), ordered)
        return _made(
            nodes=ordered, columns=_columns(ordered, models), models=models, version=version, changes=()
        )

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._rows

    def __repr__(self) -> str:
        return f"Snapshot(version={self.version}, nodes={len(self)})"

    def row(self, node_id: str) -> int:
        """The node's row in the columns; raises ``KeyError`` when it is not there."""
        return self._rows[node_id]

    def node(self, node_id: str) -> Node:
        """The node of that id, its metrics as old as the snapshot says; ``KeyError`` when it is not there."""
        row = self._rows[node_id]
        node, age_s = self._nodes[row], float(self.columns.metrics_age_s[row])
        if node.metrics_age_s is None or node.metrics_age_s == age_s:
            return node
        return replace(node, metrics_age_s=age_s)

    def apply(self, upserts: Iterable[Node] = (), removed: Iterable[str] = ()) -> Snapshot:
        """The next version, with these nodes replaced or added and those gone; this snapshot stays as it is.

        Ids in ``removed`` that are unknown are ignored; a node in both is replaced. O(n) in copied bytes, and
        only for columns that changed; O(n log n) when nodes come or go.
        """
        new = {node.id: node for node in upserts}
        gone = frozenset(removed).intersection(self._rows) - new.keys()
        new = {i: node for i, node in new.items() if i not in self._rows or self.node(i) != node}
        models = _models(self.models, new.values())
        version, changes = (
            self.version + 1,
            (*self._changes, (self.version + 1, gone | new.keys()))[-_REMEMBERED:],
        )
        if gone or not new.keys() <= self._rows.keys():
            nodes, columns = self._reshaped(new, gone, models)
            return _made(nodes=nodes, columns=columns, models=models, version=version, changes=changes)
        nodes, columns = self._updated(new, models)
        relabelled = any(node.labels != self._nodes[self._rows[i]].labels for i, node in new.items())
        labels = {} if relabelled else self._labels
        return self._with(
            _nodes=nodes, columns=columns, models=models, version=version, _changes=changes, _labels=labels
        )

    def aged(self, elapsed_s: float) -> Snapshot:
        """The same picture and version ``elapsed_s`` later: every metric is that much older."""
        older = self.columns.metrics_age_s + elapsed_s
        return self._with(columns=replace(self.columns, metrics_age_s=older))

    def changed_since(self, version: int) -> frozenset[str] | None:
        """Ids of the nodes added, changed or removed after that version; None when that is too long ago."""
        known_from = self._changes[0][0] - 1 if self._changes else self.version
        if not known_from <= version <= self.version:
            return None
        return frozenset().union(*(ids for number, ids in self._changes if number > version))

    def has_fresh_metrics(self, stale_after_s: float) -> BoolArray:
        """(n,) True where the node has metrics not older than that."""
        return self.columns.metrics_age_s <= stale_after_s

    def without_stale_metrics(self, stale_after_s: float) -> Snapshot:
        """For scorers: the same, with real use unknown in the columns where it was measured too long ago."""
        stale = ~self.has_fresh_metrics(stale_after_s)
        if not stale.any():
            return self
        columns = replace(
            self.columns,
            cpus_used=np.where(stale, np.nan, self.columns.cpus_used),
            memory_used_bytes=np.where(stale, np.nan, self.columns.memory_used_bytes),
            device_excess=np.where(stale[:, None], UNKNOWN_USE, self.columns.device_excess),
        )
        return self._with(columns=columns)

    def has_labels(self, labels: Iterable[tuple[str, str]]) -> BoolArray:
        """(n,) True where the node has all of these labels. Kept per label for the next call."""
        mask = np.ones(len(self), dtype=bool)
        for label in labels:
            has = self._labels.get(label)
            if has is None:
                name, value = label
                has = np.array([node.labels.get(name) == value for node in self._nodes], dtype=bool)
                if len(self._labels) < _REMEMBERED:
                    self._labels[label] = has
            mask &= has
        return mask

    def accepted_devices(self, request: Request) -> BoolArray:
        """(n, d) True for the devices whose model the request accepts."""
        accepted = np.array([request.accepts_model(model) for model in self.models] + [False], dtype=bool)
        mask: BoolArray = accepted[self.columns.device_model]  # -1, no device, is the last entry
        return mask

    def _with(self, **changed: object) -> Snapshot:
        after = Snapshot()
        for name in self.__slots__:
            setattr(after, name, changed.get(name, getattr(self, name)))
        _seal(after.columns)
        return after

    def _updated(self, new: dict[str, Node], models: tuple[str, ...]) -> tuple[tuple[Node, ...], Columns]:
        rows = [self._rows[i] for i in new]
        nodes = list(self._nodes)
        for row, node in zip(rows, new.values(), strict=True):
            nodes[row] = node
        part = _columns(list(new.values()), models)
        gpus = self.columns.gpus.copy()
        gpus[rows] = part.gpus
        width = int(gpus.max(initial=0))
        columns: dict[str, Any] = {}
        for name in _COLUMNS:
            column, values = _fitted(name, self.columns, width), _fitted(name, part, width)
            if not np.array_equal(column[rows], values):
                column = column.copy()
                column[rows] = values
            columns[name] = column
        return tuple(nodes), Columns(**columns)

    def _reshaped(
        self, new: dict[str, Node], gone: frozenset[str], models: tuple[str, ...]
    ) -> tuple[tuple[Node, ...], Columns]:
        kept = [row for row, i in enumerate(self.nodes) if i not in gone and i not in new]
        nodes = [self._nodes[row] for row in kept] + list(new.values())
        order = sorted(range(len(nodes)), key=lambda position: nodes[position].id)
        part = _columns(list(new.values()), models)
        width = int(np.concatenate([self.columns.gpus[kept], part.gpus]).max(initial=0))
        columns: dict[str, Any] = {}
        for name in _COLUMNS:
            both = np.concatenate([_fitted(name, self.columns, width)[kept], _fitted(name, part, width)])
            columns[name] = both[order]
        return tuple(nodes[position] for position in order), Columns(**columns)


def _made(
    *,
    nodes: Sequence[Node],
    columns: Columns,
    models: tuple[str, ...],
    version: int,
    changes: tuple[tuple[int, frozenset[str]], ...],
) -> Snapshot:
    made = Snapshot()
    made._nodes, made.nodes = tuple(nodes), tuple(node.id for node in nodes)
    made._rows = {node_id: row for row, node_id in enumerate(made.nodes)}
    made.columns, made.models, made.version = columns, models, version
    made._changes, made._labels = changes, {}
    _seal(columns)
    return made


_COLUMNS = tuple(f.name for f in fields(Columns))
_PADDING: dict[str, float] = {"device_model": -1, "device_free": -np.inf, "device_excess": 0.0}


def _models(known: tuple[str, ...], nodes: Iterable[Node]) -> tuple[str, ...]:
    seen = dict.fromkeys(known)
    for node in nodes:
        seen.update(dict.fromkeys(device.model for device in node.devices))
    return known if len(seen) == len(known) else tuple(seen)


def _columns(nodes: Sequence[Node], models: tuple[str, ...]) -> Columns:
    width = max((len(node.devices) for node in nodes), default=0)
    index = {model: i for i, model in enumerate(models)}

    def floats(values: Iterable[float | None]) -> FloatArray:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def ints(values: Iterable[int]) -> IntArray:
        return np.array(list(values), dtype=np.int64)

    def per_device(name: str, dtype: type, rows: Iterable[Iterable[float]]) -> Any:
        padded: Any = np.full((len(nodes), width), _PADDING[name], dtype=dtype)
        for row, values in enumerate(rows):
            filled = list(values)
            padded[row, : len(filled)] = filled
        return padded

    return Columns(
        cpus=floats(node.cpus for node in nodes),
        cpus_free=floats(node.cpus_free for node in nodes),
        cpus_used=floats(node.cpus_used for node in nodes),
        memory_bytes=ints(node.memory_bytes for node in nodes),
        memory_free_bytes=ints(node.memory_free_bytes for node in nodes),
        memory_used_bytes=floats(node.memory_used_bytes for node in nodes),
        gpus=ints(node.gpus for node in nodes),
        gpus_free=floats(node.gpus_free for node in nodes),
        kernels=ints(node.kernels for node in nodes),
        is_draining=np.array([node.is_draining for node in nodes], dtype=bool),
        metrics_age_s=floats(node.metrics_age_s for node in nodes),
        device_model=per_device(
            "device_model", np.int64, ((index[d.model] for d in n.devices) for n in nodes)
        ),
        device_free=per_device("device_free", np.float64, ((d.free for d in n.devices) for n in nodes)),
        device_excess=per_device("device_excess", np.float64, ((d.excess for d in n.devices) for n in nodes)),
    )


def _fitted(name: str, columns: Columns, width: int) -> Any:
    """The column with room for that many devices; what is cut off belongs to nodes that go or change."""
    column = getattr(columns, name)
    if name not in _PADDING:
        return column
    missing = max(0, width - column.shape[1])
    return np.pad(column[:, :width], ((0, 0), (0, missing)), constant_values=_PADDING[name])


def _seal(columns: Columns) -> None:
    for name in _COLUMNS:
        getattr(columns, name).setflags(write=False)
