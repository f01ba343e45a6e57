"""Traces and nodes for benchmarks: CSV files as in Alibaba's trace openb, and the logs of services."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, TextIO

from roost.launchers.daemon.json_text import UnfitText, parse_json
from roost.placement import Device, Node, Request, Snapshot
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import open_input
from roost.scheduler.policies.offline import read_snapshot
from roost.scheduler.service.decision_log import ASKED, DECISION

from .trace_run import Arrival, empty_node

_MIB = 1 << 20
_NODES = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
_TASKS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
_MORE_OF_TASKS = ("gpu_spec", "creation_time", "deletion_time", "qos", "pod_phase", "scheduled_time")
"""The other columns of openb's tasks. The last three have no effect."""
MOST_NODES = 200_000
MOST_TASKS = 1_000_000
_MOST_LINE = 1_000_000
MOST_GPUS = 64
"""At most this many GPUs in one node."""


def read_trace(path: str) -> list[Arrival]:
    """Return the requests of a CSV file or of a service's log by time of arrival. A `ConfigError` names the line."""
    file = Path(path)
    if is_list(path):
        rows = _rows(file, _TASKS, "tasks", MOST_TASKS, more=_MORE_OF_TASKS)
        arrivals = [_in_file(_task, *row) for row in rows]
        if not arrivals:
            raise ConfigError(f"{path} has no tasks.")
    else:
        arrivals = list(_read_log(file))
        if not arrivals:
            raise ConfigError(
                f"{path} has no decision of a service, or no kernel has ended yet. The name of a list ends in .csv."
            )
    return sorted(arrivals, key=attrgetter("at_s"))


def is_list(path: str) -> bool:
    """True if the file is a CSV file by its name."""
    return path.lower().endswith(".csv")


@contextmanager
def _open(file: Path) -> Iterator[TextIO]:
    try:
        with open(open_input(file), newline="", encoding="utf-8-sig") as opened:
            yield opened
    except OSError as problem:
        raise ConfigError(f"{file} cannot be read: {problem.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ConfigError(f"{file} is neither a CSV file nor the log of a service: {problem}.") from None


def _lines(opened: TextIO, file: Path) -> Iterator[str]:
    """Return the lines of an open file. Raises `ConfigError` for a line of more than `_MOST_LINE` characters."""
    while line := opened.readline(_MOST_LINE + 1):
        if len(line) > _MOST_LINE:
            raise ConfigError(f"{file} has a line of more than {_MOST_LINE:,} characters.")
        yield line


def read_nodes(path: str) -> list[Node]:
    """Return the nodes of a CSV file, without kernels. A `ConfigError` names the file and the line."""
    nodes = [_in_file(_node, *row) for row in _rows(Path(path), _NODES, "nodes", MOST_NODES)]
    if not nodes:
        raise ConfigError(f"{path} has no nodes.")
    return nodes


def read_cluster(path: str) -> list[Node]:
    """Return the empty nodes of a CSV file, or of the output of `roost nodes --json`. Raise `ConfigError`."""
    if is_list(path):
        nodes = read_nodes(path)
    else:
        saved = read_snapshot(path)
        nodes = [saved.node(node_id) for node_id in saved.nodes]
    try:
        Snapshot.of(nodes)
    except ValueError as problem:  # two nodes have the same name
        raise ConfigError(f"{path}: {problem}") from None
    return [empty_node(node) for node in nodes]


# openb


def _rows(
    file: Path, columns: Sequence[str], what: str, most: int, *, more: Sequence[str] = ()
) -> Iterator[tuple[dict[str, str], Path, int]]:
    """Yield the rows with their lines. `columns` are needed, and `more` may be there."""
    with _open(file) as opened:
        reader = csv.DictReader(_lines(opened, file), restval="")
        names = reader.fieldnames or ()
        missing = [name for name in columns if name not in names]
        if missing:
            raise ConfigError(
                f"{file} is not a list of {what}: it has no column {missing[0]} (needed: {', '.join(columns)})."
            )
        if unread := [f"{name!r:.40}" for name in names if name not in (*columns, *more)]:
            which = f"the column {unread[0]}" if len(unread) == 1 else f"the columns {', '.join(unread[:5])}"
            raise ConfigError(f"{file} has {which}, which roost does not read: leave it out.")
        for number, row in enumerate(reader):
            if None in row:
                raise ConfigError(f"{file}, line {reader.line_num}: it has more values than columns.")
            if number == most:
                raise ConfigError(f"{file} has more than {most:,} {what}: give fewer.")
            yield row, file, reader.line_num


def _in_file(read: Callable[[Any], Any], row: Any, file: Path, line: int) -> Any:
    try:
        return read(row)
    except (ValueError, OverflowError) as problem:
        raise ConfigError(f"{file}, line {line}: {problem}") from None


def _node(row: Mapping[str, str]) -> Node:
    count = _whole(row, "gpu")
    if count > MOST_GPUS:
        raise ValueError(f"a node can have at most {MOST_GPUS} GPUs; got {count}.")
    devices = tuple(Device(id=str(i), model=row["model"].strip()) for i in range(count))
    return Node(
        id=row["sn"],
        cpus=_number(row, "cpu_milli") / 1000,
        memory_bytes=_whole(row, "memory_mib") * _MIB,
        devices=devices,
    )


def _task(row: Mapping[str, str]) -> Arrival:
    count, milli = _whole(row, "num_gpu"), _whole(row, "gpu_milli")
    if count > 1 and milli not in (0, 1000):
        raise ValueError(f"{count} GPUs of {milli / 1000:g} each are impossible: a share is part of one GPU.")
    gpus = milli / 1000 if count == 1 else float(count)
    names = row.get("gpu_spec", "").split("|") if gpus else ()
    models = tuple(name.strip() for name in names if name.strip())
    request = Request(
        cpus=_number(row, "cpu_milli") / 1000,
        memory_bytes=_whole(row, "memory_mib") * _MIB,
        gpus=gpus,
        gpu_models=models,
    )
    created_s = _number(row, "creation_time") if row.get("creation_time") else 0.0
    duration_s = None
    if row.get("creation_time") and row.get("deletion_time"):
        duration_s = _number(row, "deletion_time") - created_s
        if duration_s < 0:
            raise ValueError("deletion_time is before creation_time.")
    return Arrival(request=request, at_s=created_s, duration_s=duration_s)


def _number(row: Mapping[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        raise ValueError(f"{name} must be a number; got {row[name]!r:.40}.") from None


def _whole(row: Mapping[str, str], name: str) -> int:
    number = _number(row, name)
    if not 0 <= number < 1e15 or number != int(number):
        raise ValueError(f"{name} must be a whole number, 0 or more; got {row[name]!r:.40}.")
    return int(number)


# The log of a service


def _read_log(file: Path) -> Iterator[Arrival]:
    """Yield the requests that a service has decided on, after those in the log of the service before it."""
    earlier = file.with_name(f"{file.name}.old")
    for each in (earlier, file) if earlier.exists() else (file,):
        with _open(each) as opened:
            for number, line in enumerate(_lines(opened, each), start=1):
                if match := DECISION.search(line):
                    yield _in_file(_parse_decision, match[1], each, number)


def _parse_decision(text: str) -> Arrival:
    """Return the request of one decision. Its kernel runs from its placement to its end."""
    try:
        line = parse_json(text)
        at_s, ended_s = float(line["asked_at"]), float(line["ended_at"])
        placed_s = None if line["placed_at"] is None else float(line["placed_at"])
        request = Request.from_dict(
            {name: line["request"][name] for name in ASKED if name in line["request"]}
        )
    except (UnfitText, KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"this decision cannot be read ({problem}).") from None
    return Arrival(
        request=request, at_s=at_s, duration_s=None if placed_s is None else max(0.0, ended_s - placed_s)
    )
