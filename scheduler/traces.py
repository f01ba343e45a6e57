"""Traces to be replayed and the nodes they are replayed on: openb's CSV files, roost's decision log, nodes to be added.

The forms of the CSV files are those of Alibaba's trace of 2023 (github.com/alibaba/clusterdata, openb).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from roost.placement import Device, Node, Request
from roost.placement.replay import Arrival

from .amounts import parse_bytes
from .decision_log import ASKED, older
from .errors import ConfigError

_MIB = 1 << 20
_NODES = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
_TASKS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
_MOST_ADDED = 100_000


def read_trace(path: str) -> list[Arrival]:
    """The tasks of a trace, in the order of their arrival: a CSV file, or a decision log with the one before it.

    Raises `ConfigError` with one sentence that names the file and the line.
    """
    file = Path(path)
    if _begins_with_brace(file):
        files = [each for each in (older(file), file) if each == file or each.exists()]
        arrivals = _arrivals_of(line for each in files for line in _json_lines(each))
    else:
        arrivals = [_in_file(_task, *row) for row in _rows(file, _TASKS, "tasks")]
    if not arrivals:
        raise ConfigError(f"{path} has no tasks: there is nothing to simulate.")
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def read_nodes(path: str) -> list[Node]:
    """The nodes of a CSV file, empty; raises `ConfigError` with one sentence that names the file and the line."""
    nodes = [_in_file(_node, *row) for row in _rows(Path(path), _NODES, "nodes")]
    if not nodes:
        raise ConfigError(f"{path} has no nodes: there is nothing to simulate on.")
    return nodes


def added(nodes: Sequence[Node], specification: str) -> list[Node]:
    """More nodes: `4x96cpus,384GiB,8xA100`, or `4xNAME` for empty ones like that node. Raises `ConfigError`."""
    count_text, cross, what = specification.partition("x")
    if not (cross and what and count_text.isdecimal() and 0 < int(count_text) <= _MOST_ADDED):
        raise ConfigError(
            f"--add {specification!r} must be how many of what: 4x96cpus,384GiB,8xA100, or 4xNAME of a node there is."
        )
    known = {node.id: node for node in nodes}
    like = known[what].emptied() if what in known else _described(what, specification, known)
    taken = sum(node.id.startswith("added-") for node in nodes)
    return [
        replace(like, id=f"added-{taken + number:04}", address="") for number in range(1, int(count_text) + 1)
    ]


def _described(what: str, specification: str, known: Mapping[str, Node]) -> Node:
    cpus, memory_bytes, devices = 0.0, 0, list[Device]()
    for part in what.split(","):
        part = part.strip()
        if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?cpus?", part):
            cpus = float(match[1])
        elif match := re.fullmatch(r"(\d{1,4}) ?(?:gpus?|x ?(\S.*))", part):
            first = len(devices)
            devices += [Device(id=str(first + i), model=match[2] or "") for i in range(int(match[1]))]
        elif re.fullmatch(r"[\d.]+ ?[kmgtpKMGTP]i?[bB]?", part):
            memory_bytes = parse_bytes(part)
        else:
            examples = f"; nodes there are: {', '.join(list(known)[:3])}, …" if known else ""
            raise ConfigError(
                f"--add {specification!r}: {part!r} is neither 96cpus, 384GiB, 8xA100 nor the name of a node{examples}."
            )
    return Node(id="added", cpus=cpus, memory_bytes=memory_bytes, devices=tuple(devices))


# openb


def _rows(file: Path, columns: Sequence[str], what: str) -> Iterator[tuple[dict[str, str], Path, int]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{file} is no list of {what}: it has no column {missing[0]}, of {', '.join(columns)}."
                )
            for row in reader:
                yield row, file, reader.line_num
    except OSError as problem:
        raise ConfigError(f"{file} cannot be read: {problem.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ConfigError(f"{file} is no CSV file: {problem}.") from None


def _in_file(read: Callable[[Any], Any], row: Any, file: Path, line: int) -> Any:
    try:
        return read(row)
    except (ValueError, OverflowError) as problem:
        raise ConfigError(f"{file}, line {line}: {problem}") from None


def _node(row: Mapping[str, str]) -> Node:
    devices = tuple(Device(id=str(i), model=row["model"].strip()) for i in range(_whole(row, "gpu")))
    return Node(
        id=row["sn"],
        cpus=_number(row, "cpu_milli") / 1000,
        memory_bytes=_whole(row, "memory_mib") * _MIB,
        devices=devices,
    )


def _task(row: Mapping[str, str]) -> Arrival:
    count, milli = _whole(row, "num_gpu"), _whole(row, "gpu_milli")
    if count > 1 and milli not in (0, 1000):
        raise ValueError(f"{count} GPUs of {milli / 1000:g} each cannot be asked for: a share is of one GPU.")
    gpus = milli / 1000 if count == 1 else float(count)
    models = (
        tuple(name.strip() for name in row.get("gpu_spec", "").split("|") if name.strip()) if gpus else ()
    )
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


# The decision log


def _begins_with_brace(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(1) == b"{"
    except OSError as problem:
        raise ConfigError(f"{file} cannot be read: {problem.strerror}.") from None


def _json_lines(file: Path) -> Iterator[tuple[Mapping[str, Any], Path, int]]:
    try:
        with file.open(encoding="utf-8") as opened:
            for number, text in enumerate(opened, start=1):
                try:
                    line = json.loads(text)
                except ValueError:
                    line = None
                if not isinstance(line, dict) or "what" not in line:
                    raise ConfigError(f"{file}, line {number}: this is no line of a decision log; remove it.")
                yield line, file, number
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{file} cannot be read: {problem}.") from None


def _arrivals_of(lines: Iterator[tuple[Mapping[str, Any], Path, int]]) -> list[Arrival]:
    """A kernel that was placed arrived when it was asked for, and ran from its placement to its end."""
    arrivals: list[Arrival] = []
    running: dict[str, tuple[int, float]] = {}  # by kernel: which arrival, placed when
    for line, file, number in lines:
        arrival, at_s = _in_file(_asked, line, file, number)
        kernel_id = str(line.get("kernel", ""))
        if line["what"] in ("placed", "ended") and kernel_id in running:
            index, placed_s = running.pop(kernel_id)
            arrivals[index] = replace(arrivals[index], duration_s=max(0.0, at_s - placed_s))
        if line["what"] == "placed":
            running[kernel_id] = len(arrivals), at_s
        if line["what"] in ("placed", "refused"):
            arrivals.append(arrival)
    return arrivals


def _asked(line: Mapping[str, Any]) -> tuple[Arrival, float]:
    try:
        asked = {name: line["request"][name] for name in ASKED if name in line["request"]}
        at_s, asked_s = (datetime.fromisoformat(line[name]).timestamp() for name in ("at", "asked_at"))
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"this is no line of a decision log ({problem}).") from None
    return Arrival(request=Request.from_dict(asked), at_s=asked_s), at_s
