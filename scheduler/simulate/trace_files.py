"""Traces and nodes for `roost simulate`: CSV files as in Alibaba's trace openb, decision logs, `--add`."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, TextIO

from roost.launchers.daemon.json_text import UnfitText, parse_json
from roost.placement import Device, Node, NodeType, Request
from roost.placement.trace_run import Arrival
from roost.scheduler.config.memory_size import parse_bytes
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import open_input
from roost.scheduler.service.decision_log import ASKED, older_file

_MIB = 1 << 20
_NODES = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
_TASKS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
_MORE_OF_TASKS = ("user", "gpu_spec", "creation_time", "deletion_time", "qos", "pod_phase", "scheduled_time")
"""A column of roost, and the other columns of openb's tasks. The last three have no effect on a simulation."""
MOST_NODES = 200_000
MOST_TASKS = 1_000_000
_MOST_LINE = 1_000_000
MOST_GPUS = 64
"""At most this many GPUs in one node."""


def read_trace(path: str) -> list[Arrival]:
    """Return the tasks of a CSV file or a decision log by time of arrival. A `ConfigError` names the file and line."""
    return sorted(_read(path)[0], key=attrgetter("at_s"))


def read_ended(path: str) -> tuple[list[Arrival], int]:
    """Return the kernels of a decision log that have ended, by time of arrival, and how many still run."""
    arrivals, running = _read(path)
    ended = [arrival for i, arrival in enumerate(arrivals) if i not in running]
    return sorted(ended, key=attrgetter("at_s")), len(running)


def _read(path: str) -> tuple[list[Arrival], set[int]]:
    """Return the tasks of a file. For a decision log, return also the indexes of the kernels that still run.

    Before a decision log, the older log that it replaced is read.
    """
    file, running = Path(path), set[int]()
    with _open(file) as opened:
        is_log = opened.read(1) == "{"
    if is_log:
        files = [each for each in (older_file(file), file) if each == file or each.exists()]
        arrivals, running = _read_decisions(line for each in files for line in _json_lines(each))
    else:
        rows = _rows(file, _TASKS, "tasks", MOST_TASKS, more=_MORE_OF_TASKS)
        arrivals = [_in_file(_task, *row) for row in rows]
    if not arrivals:
        raise ConfigError(f"{path} has no tasks.")
    return arrivals, running


@contextmanager
def _open(file: Path) -> Iterator[TextIO]:
    try:
        with open(open_input(file), newline="", encoding="utf-8-sig") as opened:
            yield opened
    except OSError as problem:
        raise ConfigError(f"{file} cannot be read: {problem.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ConfigError(f"{file} is neither a CSV file nor a decision log: {problem}.") from None


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


def add_nodes(nodes: Sequence[Node], specification: str, types: Sequence[NodeType] = ()) -> list[Node]:
    """Return the nodes that `--add` describes: `4x96cpus,384GiB,8xA100`, or `4xNODE` for empty copies of a node.

    NODE is the name of a node, or of one of the types of nodes that the cluster could start.
    """
    count_text, cross, what = specification.partition("x")
    if not (cross and what and count_text.isdecimal() and int(count_text[:10]) > 0):
        raise ConfigError(
            f"--add {specification!r} must be a number and a node: 4x96cpus,384GiB,8xA100, or 4xNODE to copy one."
        )
    count = int(count_text[:10])  # longer numbers exceed MOST_NODES anyway
    if len(nodes) + count > MOST_NODES:
        raise ConfigError(f"--add {specification!r:.80} makes more than {MOST_NODES:,} nodes: add fewer.")
    known = {node_type.name: node_type.node for node_type in types} | {node.id: node for node in nodes}
    like = known[what].as_empty() if what in known else _parse_node(what, specification, known)
    taken = sum(node.id.startswith("added-") for node in nodes)
    return [replace(like, id=f"added-{taken + number:04}", address="") for number in range(1, count + 1)]


def _parse_node(what: str, specification: str, known: Mapping[str, Node]) -> Node:
    cpus, memory_bytes, devices = 0.0, 0, list[Device]()
    for part in what.split(","):
        part = part.strip()
        if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?cpus?", part):
            cpus = float(match[1])
        elif match := re.fullmatch(r"(\d{1,9}) ?(?:gpus?|x ?(\S.*))", part):
            first = len(devices)
            if first + int(match[1]) > MOST_GPUS:
                raise ConfigError(f"--add {specification!r}: a node can have at most {MOST_GPUS} GPUs.")
            devices += [Device(id=str(first + i), model=match[2] or "") for i in range(int(match[1]))]
        elif re.fullmatch(r"[\d.]+ ?[kmgtpKMGTP]i?[bB]?", part):
            memory_bytes = parse_bytes(part)
        else:
            more = ", …" if len(known) > 3 else ""
            examples = f"; the nodes are {', '.join(list(known)[:3])}{more}" if known else ""
            raise ConfigError(
                f"--add {specification!r}: {part!r} is neither 96cpus, 384GiB, 8xA100 nor the name of a node{examples}."
            )
    return Node(id="added", cpus=cpus, memory_bytes=memory_bytes, devices=tuple(devices))


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
            instead = " Nodes with more properties come from --snapshot." if what == "nodes" else ""
            raise ConfigError(f"{file} has {which}, which a simulation does not read: leave it out.{instead}")
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
        owner=row.get("user", "").strip(),
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


# The decision log


def _json_lines(file: Path) -> Iterator[tuple[Mapping[str, Any], Path, int]]:
    with _open(file) as opened:
        for number, text in enumerate(_lines(opened, file), start=1):
            try:
                line = parse_json(text)
            except UnfitText:
                line = None
            if not isinstance(line, dict) or "what" not in line:
                raise ConfigError(
                    f"{file}, line {number}: this line is not from a decision log. Remove it, or give another file."
                )
            if number > MOST_TASKS:
                raise ConfigError(f"{file} has more than {MOST_TASKS:,} lines: give fewer.")
            yield line, file, number


def _read_decisions(lines: Iterator[tuple[Mapping[str, Any], Path, int]]) -> tuple[list[Arrival], set[int]]:
    """Return the arrivals in a decision log, and the indexes of the kernels that still run.

    A kernel arrives at the time of its request, and runs from its placement to its end.
    """
    arrivals: list[Arrival] = []
    running: dict[str, tuple[int, float]] = {}  # by kernel id: index of the arrival, time of the placement
    for line, file, number in lines:
        arrival, at_s = _in_file(_parse_decision, line, file, number)
        kernel_id = str(line.get("kernel", ""))
        if line["what"] in ("placed", "ended") and kernel_id in running:
            index, placed_s = running.pop(kernel_id)
            arrivals[index] = replace(arrivals[index], duration_s=max(0.0, at_s - placed_s))
        if line["what"] == "placed":
            running[kernel_id] = len(arrivals), at_s
        if line["what"] in ("placed", "refused"):
            arrivals.append(arrival)
    return arrivals, {index for index, _ in running.values()}


def _parse_decision(line: Mapping[str, Any]) -> tuple[Arrival, float]:
    try:
        asked = {name: line["request"][name] for name in ASKED if name in line["request"]}
        asked["owner"] = line.get("user", "")
        at_s, asked_s = (datetime.fromisoformat(line[name]).timestamp() for name in ("at", "asked_at"))
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"this line is not from a decision log ({problem}).") from None
    return Arrival(request=Request.from_dict(asked), at_s=asked_s), at_s
