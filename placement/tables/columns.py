"""The nodes as rows of arrays, on which filters and scorers compute. Rows with fewer devices are padded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roost.placement.model import Node
from roost.placement.model.node import UNKNOWN_USE

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Columns:
    """Read-only arrays with one row for each of n nodes. NaN means unknown.

    Arrays of devices have d columns, the largest number of devices on a node. The columns of a part of a snapshot are
    copied from the whole snapshot's columns when they are first read.

    >>> from roost.placement import Device, Node, Snapshot
    >>> nodes = [Node(id="a", cpus=4), Node(id="b", devices=(Device(id="0", promised=0.25),))]
    >>> columns = Snapshot.of(nodes).columns
    >>> columns.cpus.tolist(), columns.device_free.tolist()
    ([4.0, 0.0], [[-inf], [0.75]])
    """

    __slots__ = (
        "_rows",
        "_source",
        "cpus",
        "cpus_free",
        "cpus_used",
        "device_excess",
        "device_free",
        "device_milli",
        "device_model",
        "gpus",
        "gpus_free",
        "is_draining",
        "kernels",
        "memory_bytes",
        "memory_free_bytes",
        "memory_used_bytes",
        "metrics_age_s",
    )

    cpus: FloatArray  # (n,) allocatable
    cpus_free: FloatArray  # (n,) not promised, may be negative
    cpus_used: FloatArray  # (n,)
    memory_bytes: IntArray  # (n,) allocatable
    memory_free_bytes: IntArray  # (n,) not promised, may be negative
    memory_used_bytes: FloatArray  # (n,)
    gpus: IntArray  # (n,) number of devices
    gpus_free: FloatArray  # (n,) not promised, as a sum over the node
    kernels: IntArray  # (n,)
    is_draining: BoolArray  # (n,)
    metrics_age_s: FloatArray  # (n,)
    device_model: IntArray  # (n, d) index into Snapshot.models, -1 where there is no device
    device_free: FloatArray  # (n, d) 1 - promised, -inf where there is no device
    device_milli: IntArray  # (n, d) the free share in thousandths, 0..1000, 0 where there is no device
    device_excess: FloatArray  # (n, d) Device.excess: use that clearly exceeds the promises
    _source: Columns  # of a part
    _rows: IntArray | slice

    def __init__(self, **columns: Any) -> None:
        for name, column in columns.items():
            column.setflags(write=False)
            setattr(self, name, column)

    def __getattr__(self, name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(name)
        column = getattr(self._source, name)[self._rows]
        column.setflags(write=False)
        setattr(self, name, column)
        return column

    @property
    def room(self) -> FloatArray:
        """(n, 3 + d) free CPUs, bytes of memory (exact below 2**53) and GPUs, then the free share of each device."""
        return np.column_stack([*(getattr(self, name) for name in ROOM), self.device_free])

    def part(self, rows: IntArray | slice) -> Columns:
        """Return the columns of these rows, in that order. O(1), and O(len(rows)) for each column that is read."""
        part = Columns()
        part._source, part._rows = self, rows
        return part

    def replace(self, **columns: Any) -> Columns:
        return Columns(
            **{name: columns[name] if name in columns else getattr(self, name) for name in COLUMNS}
        )


class Table(Columns):
    """Columns that are stored row by row, so that a few rows are read from few lines of the processor's cache.

    A row holds `room` and the columns in the order of `_layout`, with eight bytes per value.
    """

    __slots__ = ("_floats", "_ints", "_layout")

    def __init__(self, rows: IntArray, layout: dict[str, tuple[bool, int | slice]]) -> None:
        self._ints = rows
        self._floats = rows.view(np.float64)
        self._layout = layout

    @classmethod
    def of(cls, columns: Columns) -> Table:
        d = columns.device_model.shape[1]
        layout = _layout(d)
        width = len(ROOM) + len(_PADDING) * d + len(_SCALARS)
        table = cls(np.empty((len(columns.cpus), width), dtype=np.int64), layout)
        table._floats[:, : len(ROOM)] = columns.room[:, : len(ROOM)]
        for name, (is_float, place) in layout.items():
            (table._floats if is_float else table._ints)[:, place] = getattr(columns, name)
        return table

    def __getattr__(self, name: str) -> Any:
        if name not in self._layout:
            raise AttributeError(name)
        is_float, place = self._layout[name]
        column: Any = (self._floats if is_float else self._ints)[:, place]
        if name == "is_draining":
            column = column.astype(bool)
        elif len(column) > _FEW:
            column = column.copy()
        column.setflags(write=False)
        setattr(self, name, column)
        return column

    @property
    def room(self) -> FloatArray:
        devices: Any = self._layout["device_free"][1]
        return self._floats[:, : devices.stop]

    def part(self, rows: IntArray | slice) -> Table:
        """Return a copy of these rows, in that order. For a slice, return a view."""
        part = self._ints[rows] if isinstance(rows, slice) else self._ints.take(rows, axis=0)
        return Table(part, self._layout)

    def put(self, rows: Iterable[int], values: Table) -> None:
        """Replace these rows by the rows of ``values``, in that order."""
        for row, value in zip(rows, values._ints, strict=True):
            self._ints[row] = value

    def find_differences(self, other: Table) -> frozenset[str]:
        """Return the names of the columns that differ. Both tables have the same shape."""
        differs = np.logical_or.reduce(self._ints != other._ints, axis=0)
        return frozenset(name for name, (_, place) in self._layout.items() if differs[place].any())


COLUMNS = tuple(name for name in Columns.__slots__ if not name.startswith("_"))
_NAMES = frozenset(COLUMNS)
ROOM = ("cpus_free", "memory_free_bytes", "gpus_free")
"""The first columns of `Columns.room`."""
_FEW = 256
"""A column of at most this many rows is read in place, without a copy."""
_WHOLE = frozenset(
    {"memory_bytes", "memory_free_bytes", "gpus", "kernels", "is_draining", "device_model", "device_milli"}
)
"""The columns of whole numbers and truth values."""
_TYPES = {name: np.int64 if name in _WHOLE else np.float64 for name in COLUMNS} | {"is_draining": np.bool_}
_PADDING: dict[str, float] = {
    "device_free": -np.inf,  # first, because it is a part of `Columns.room`
    "device_model": -1,
    "device_milli": 0,
    "device_excess": 0.0,
}


_SCALARS = tuple(name for name in COLUMNS if name not in _PADDING and name not in ("cpus_free", "gpus_free"))


@lru_cache(maxsize=64)
def _layout(width: int) -> dict[str, tuple[bool, int | slice]]:
    """Return, for each column, whether it has floats, and its place in a row with ``width`` devices."""
    places: dict[str, int | slice] = {"cpus_free": 0, "gpus_free": 2}
    start = len(ROOM)
    for name in _PADDING:
        places[name] = slice(start, start := start + width)
    places.update((name, start + at) for at, name in enumerate(_SCALARS))
    return {name: (name not in _WHOLE, place) for name, place in places.items()}


def build_columns(nodes: Sequence[Node], models: Sequence[str], width: int | None = None) -> Columns:
    """Return the columns of these nodes. ``models`` has all their device models, ``width`` is the devices per row."""
    if width is None:
        width = max((len(node.devices) for node in nodes), default=0)
    index = {model: i for i, model in enumerate(models)}
    after: dict[str, Any] = {
        name: np.array([getattr(node, name) for node in nodes], dtype=_TYPES[name])  # None becomes NaN
        for name in COLUMNS
        if name not in _PADDING
    }
    for name, nothing in _PADDING.items():
        after[name] = np.full((len(nodes), width), nothing, dtype=_TYPES[name])
    for row, devices in enumerate(node.devices for node in nodes):
        after["device_model"][row, : len(devices)] = [index[device.model] for device in devices]
        after["device_free"][row, : len(devices)] = [device.free for device in devices]
        after["device_excess"][row, : len(devices)] = [device.excess for device in devices]
    after["device_milli"] = np.rint(np.clip(after["device_free"], 0.0, 1.0) * 1000).astype(np.int64)
    return Columns(**after)


def compare_nodes(
    before: Sequence[Node], after: Sequence[Node], models: Sequence[str], width: int
) -> tuple[Table, frozenset[str]]:
    """Return the table of ``after``, and the names of the columns that differ, except the age of metrics.

    Both sequences have the same nodes in the same order, with devices of the same models.
    """
    both = Table.of(build_columns([*before, *after], models, width))
    old, new = both.part(slice(len(before))), both.part(np.arange(len(before), 2 * len(before)))
    return new, old.find_differences(new) - {"metrics_age_s"}


def apply_changes(
    columns: Columns, changes: Iterable[tuple[Sequence[int], Table, frozenset[str]]]
) -> Columns:
    """Return the columns after these changes, in that order. Columns that do not change are shared.

    A change has the rows, their new values, and the names of the columns that differ.
    """
    after: dict[str, Any] = {}
    for rows, values, names in changes:
        for name in names:
            if name not in after:
                after[name] = getattr(columns, name).copy()
            after[name][list(rows)] = getattr(values, name)
    return columns.replace(**after)


def reshape_columns(columns: Columns, kept: Sequence[int], part: Columns, order: IntArray) -> Columns:
    """Return the ``kept`` rows of ``columns`` followed by the rows of ``part``, indexed by ``order``. O(n)."""
    width = int(np.concatenate([columns.gpus[kept], part.gpus]).max(initial=0))
    after: dict[str, Any] = {}
    for name in COLUMNS:
        old, new = getattr(columns, name)[kept], getattr(part, name)
        if name in _PADDING:
            old, new = _fit_width(old, width, _PADDING[name]), _fit_width(new, width, _PADDING[name])
        after[name] = np.concatenate([old, new])[order]
    return Columns(**after)


def _fit_width(column: Any, width: int, padding: float) -> Any:
    missing = max(0, width - column.shape[1])
    return np.pad(column[:, :width], ((0, 0), (0, missing)), constant_values=padding)


def empty_columns(columns: Columns) -> Columns:
    """Return the columns of the same nodes without promises, kernels and draining."""
    has_device = columns.device_model >= 0
    return columns.replace(
        cpus_free=columns.cpus.copy(),
        memory_free_bytes=columns.memory_bytes.copy(),
        gpus_free=columns.gpus.astype(np.float64),
        kernels=np.zeros_like(columns.kernels),
        is_draining=np.zeros_like(columns.is_draining),
        device_free=np.where(has_device, 1.0, -np.inf),
        device_milli=np.where(has_device, 1000, 0),
    )


def forget_metrics(columns: Columns, where: BoolArray) -> Columns:
    return columns.replace(
        cpus_used=np.where(where, np.nan, columns.cpus_used),
        memory_used_bytes=np.where(where, np.nan, columns.memory_used_bytes),
        device_excess=np.where(where[:, None], UNKNOWN_USE, columns.device_excess),
    )


def update_ages(ages: FloatArray, rows: Sequence[int], nodes: Sequence[Node]) -> FloatArray:
    """Return (n,) the ages of metrics, with those of ``nodes`` in ``rows``; the same array if no age differs."""
    new = np.array([node.metrics_age_s for node in nodes], dtype=np.float64)  # None becomes NaN
    if np.array_equal(ages[list(rows)], new, equal_nan=True):
        return ages
    ages = ages.copy()
    ages[list(rows)] = new
    ages.setflags(write=False)
    return ages


def update_fresh(
    known: dict[float, tuple[BoolArray, bool]], ages: FloatArray, rows: Sequence[int]
) -> dict[float, tuple[BoolArray, bool]]:
    """Return for each known age limit: (n,) True if a node's metrics are within it, and True if all nodes' are.

    Only ``rows`` are compared again. A mask that does not change stays the same array.
    """
    after = dict(known)
    for limit, (mask, _) in known.items():
        fresh = ages[list(rows)] <= limit
        if not np.array_equal(mask[list(rows)], fresh):
            mask = mask.copy()
            mask[list(rows)] = fresh
            after[limit] = mask, bool(mask.all())
    return after
