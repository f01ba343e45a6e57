"""`roost bench density`: how many kernels each node holds until a limit, and the memory of a kernel.

Kernels are started one after the other with five channels. They are kept with four, as Jupyter Server keeps them: the
heartbeats of many kernels would slow this process down. Each limit ends the starts:

count       as many kernels as were asked for
memory      less than the stated share of a node's memory is free
latency     the median of the last ten starts, or of ten answers of earlier kernels, is longer than stated
placement   no node has room for another kernel, by the scheduler's own accounts
files       this process may open no more files: it has four channels to each kernel

PSS shares each page among the processes that use it, so it falls with the number of kernels. USS and private dirty
pages are the kernel's alone. Each kernel reads its own memory. Memory is measured once more after each further load: a
completion, and the import of the given packages. A load runs in fewer kernels if memory gets short.

all in      the PSS of a kernel and its part of roost's own processes on this machine (service, agent, zygotes, spares)
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.progress import Progress, TextColumn

from roost.launchers.daemon.open_files import read_limit
from roost.placement import Request
from roost.provisioners.request_options import read_start_options
from roost.scheduler.errors import ConfigError, RoostError

from .kernel import BenchKernel, Memory, NoAnswer
from .machine import find_fault_doubts, time_fault
from .report import Report, take_turns
from .sides import Side
from .world import MIB, fixed_pss_bytes

T = TypeVar("T")

FIRST = "1+1"
COMPLETION = "a completion"
FEW = 50
"""At most this many kernels of each side are compared, and this many of the first starts with the last ones."""
_WINDOW = 10
"""The median of this many starts, or answers, is compared with the limit for latency.

A load runs in this many kernels at least, and the free memory is looked at after as many more.
"""
_SAMPLE = 40
"""About this many kernels report their memory. Each of them runs a cell for that."""
_STOP_AT_ONCE, _HUNDRED = 8, 100
_FILES = 200
"""A start needs this many free files. A kernel takes about 20, and more to read its memory and to stop it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits that end the starts of kernels. `free` is the least share of a node's memory that must stay free."""

    kernels: int
    free: float
    latency_s: float


@dataclass(slots=True)
class Filled:
    """The kernels of a side, in the order of their starts, and why no more were started.

    `room` is the memory in bytes that each node could still use before `Limits.free` was reached. `slots` is the number
    of further kernels for which each node had enough CPUs, memory and GPUs.
    """

    kernels: list[BenchKernel] = field(default_factory=list)
    nodes: dict[BenchKernel, str] = field(default_factory=dict)
    starts_ms: list[float] = field(default_factory=list)
    limit: str = ""
    why: str = ""
    room: dict[str, float] = field(default_factory=dict)
    slots: dict[str, float] = field(default_factory=dict)

    def count(self) -> Counter[str]:
        """Return the number of kernels by node."""
        return Counter(self.nodes.values())

    async def await_answer(self, report: Report, kernel: BenchKernel, answer: Awaitable[T]) -> T | None:
        """Return what a kernel answers. Count, stop and leave out a kernel that does not answer, and return None."""
        try:
            return await answer
        except NoAnswer as problem:
            report.count_failure(kernel.side.name, str(problem))
            self.kernels.remove(kernel)
            self.nodes.pop(kernel, None)
            await kernel.stop()
            return None


async def measure(
    report: Report, sides: Sequence[Side], *, rounds: int, limits: Limits, packages: Sequence[str]
) -> None:
    """Compare the memory of a few kernels of each side, then fill the nodes with the first side's kernels."""
    by_name = {side.name: side for side in sides}
    loads = _build_loads(packages)
    report.shown = _is_main if len(sides) > 1 else _is_memory
    few = replace(limits, kernels=min(FEW, limits.kernels))
    for side in sides if packages else ():
        await check_packages(side, packages)
    if len(sides) > 1:
        for name, _ in take_turns("density", list(by_name), rounds=rounds, warm_up=0):
            async with _filled(report, by_name[name], few, is_shown=False) as filled:
                report.add(f"kernels/{name}", len(filled.kernels), "kernels")
                if (count := len(filled.kernels)) < few.kernels:
                    how_many = f"Only {count} kernels" if count else "No kernel"
                    note = f"{how_many} of {name} ran for the comparison: {filled.why}."
                    report.notes += [note] if note not in report.notes else []  # the rounds are alike
                for load, memory in (await _measure_loads(report, by_name[name], filled, few, loads)).items():
                    _add_memory(report, memory, f"{load}/{name}")
                    if load == FIRST:
                        own = fixed_pss_bytes() / MIB if by_name[name].is_roost else 0.0
                        mean = statistics.mean(each.pss for each in memory)
                        report.add(f"all in/{name}", mean + own / len(filled.kernels), "MiB")
        for stage in (*(f"PSS after {load}" for load in loads), "all in"):
            report.compare(stage, list(by_name))
    side = sides[0]
    before_us = time_fault()
    async with _filled(report, side, limits) as filled:
        if not filled.kernels:
            report.notes.append(f"No kernel was started: {filled.why}.")
            return
        report.series["start"] = filled.starts_ms
        _compare_ends(report, side, filled.starts_ms)
        report.notes += find_fault_doubts(before_us, time_fault())  # virtual machines get more memory slowly
        memory = await _measure_loads(report, side, filled, limits, loads)
    if FIRST not in memory:
        report.notes.append("No kernel answered when it was asked for its memory.")
        return
    for load, found in memory.items():
        _add_memory(report, found, f"{load}, {len(filled.kernels)} kernels/{side.name}")
    conclude(report, filled, memory)


async def check_packages(side: Side, packages: Sequence[str]) -> None:
    """Raise `ConfigError` if a kernel of this side cannot import one of the packages."""
    await side.take_turn()
    async with BenchKernel(side) as kernel:
        for name in packages:
            try:
                await kernel.execute(f"import {name}")
            except RuntimeError:
                raise ConfigError(
                    f"--packages {name}: the kernels of {side.name} cannot import it. Install it for their Python."
                ) from None


def _build_loads(packages: Sequence[str]) -> dict[str, str]:
    """Return name → code of the cells after which memory is measured, in order. A completion has empty code."""
    loads = {FIRST: "1+1", COMPLETION: ""}
    if packages:
        loads[f"import {', '.join(packages)}"] = f"import {', '.join(packages)}"
    return loads


@asynccontextmanager
async def _filled(
    report: Report, side: Side, limits: Limits, *, is_shown: bool = True
) -> AsyncIterator[Filled]:
    """Start kernels of a side until a limit is reached, and stop them at the end."""
    if side.is_roost:
        await side.warm_up()
    filled = Filled()
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.completed:.0f} kernels, {task.fields[last]}"),
    )
    try:
        with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as progress:
            bar = progress.add_task(side.name, total=None, last="")
            while not filled.limit:
                kernel = BenchKernel(side)
                filled.kernels.append(kernel)
                if not await _start_one(report, side, kernel, filled, limits):
                    continue
                started_ms = filled.starts_ms[-1]
                if is_shown:
                    report.add(_name_start(len(filled.starts_ms), side), started_ms, "ms")
                progress.update(bar, completed=len(filled.kernels), last=f"{started_ms:.0f} ms")
        yield filled
    finally:
        gate = asyncio.Semaphore(_STOP_AT_ONCE)

        async def stop(kernel: BenchKernel) -> None:
            async with gate:
                await kernel.stop()

        await asyncio.gather(*map(stop, filled.kernels))


def _name_start(number: int, side: Side) -> str:
    """Return the name of the figure that a start belongs to. Each hundred starts are one figure."""
    first = (number - 1) // _HUNDRED * _HUNDRED
    return f"start of kernels from {first + 1}/{side.name}"


def _compare_ends(report: Report, side: Side, starts_ms: Sequence[float]) -> None:
    """Compare the last starts with the first ones, if there are enough of both."""
    if len(starts_ms) < 2 * FEW:
        return
    last, first = (f"start of the {which} {FEW} kernels/{side.name}" for which in ("last", "first"))
    for name, part in ((last, starts_ms[-FEW:]), (first, starts_ms[:FEW])):
        for started_ms in part:
            report.add(name, started_ms, "ms")
    report.ratio(f"start: the last {FEW} kernels ÷ the first {FEW}", last, first)


async def _start_one(report: Report, side: Side, kernel: BenchKernel, filled: Filled, limits: Limits) -> bool:
    """Start one more kernel. Return False if it did not answer, or a limit is reached, which `filled` then names."""
    filled.limit, filled.why = await find_limit(report, side, filled, limits)
    started = None
    if not filled.limit:
        try:
            started = await filled.await_answer(report, kernel, kernel.start())
        except ConfigError:  # no kernel of this side could ever start
            raise
        except RoostError as refusal:  # a cap, for example
            filled.limit, filled.why = "placement", str(refusal).rstrip(".")
    if filled.limit:
        filled.kernels.remove(kernel)
    if started is None:
        return False
    filled.starts_ms.append(started["start"])
    await kernel.stop_heartbeat()
    if side.is_roost:
        filled.nodes[kernel] = (await side.connect().kernel(kernel.manager.kernel_id)).node_id
    else:
        filled.nodes[kernel] = "this machine"
    return True


async def find_limit(report: Report, side: Side, filled: Filled, limits: Limits) -> tuple[str, str]:
    """Return the name of the limit that is reached, and the reason. Return empty texts if none is reached."""
    count = len(filled.nodes)
    nodes = await _read_nodes(side)
    filled.room = _find_room(side, nodes, limits)
    request = _read_request(side) if side.is_roost else Request()
    filled.slots = {node["id"]: count_slots(node, request) for node in nodes}
    if short := [node for node, room in filled.room.items() if room <= 0]:
        return "memory", f"less than {limits.free:.0%} of the memory of {short[0]} is free"
    if count >= limits.kernels:
        return "count", f"{limits.kernels} kernels were asked for"
    most = read_limit()
    if find_free_descriptor() + _FILES > most:
        return "files", f"this process may open only {most} files: raise the limit (ulimit -n)"
    if side.is_roost:
        decision = await side.connect().explain(request)
        if decision.get("placement") is None:
            return "placement", str(decision.get("reason") or "no node has room")
    if count >= _WINDOW and count % _WINDOW == 0:
        started_s = statistics.median(filled.starts_ms[-_WINDOW:]) / 1e3
        answered_s = await _measure_answers(report, filled)
        if max(started_s, answered_s) > limits.latency_s:
            what = "a start" if started_s >= answered_s else "an answer"
            return "latency", f"{what} takes {max(started_s, answered_s):.2f} s"
    return "", ""


async def _measure_answers(report: Report, filled: Filled) -> float:
    """Return the median time in seconds in which about ten of the kernels answer; 0 if none of them does."""
    asked = _choose(list(filled.nodes), _WINDOW)
    answers = [await filled.await_answer(report, kernel, kernel.execute("1+1")) for kernel in asked]
    return statistics.median([ms for ms in answers if ms is not None] or [0.0]) / 1e3


def _choose(kernels: Sequence[BenchKernel], about: int) -> Sequence[BenchKernel]:
    """Return about so many of the kernels, evenly spread."""
    return kernels[:: max(1, len(kernels) // about)]


async def _read_nodes(side: Side) -> Sequence[Mapping[str, Any]]:
    """Return the nodes of a side of roost. Other sides have none."""
    return await side.connect().nodes() if side.is_roost else []


def find_free_descriptor() -> int:
    """Return the lowest file descriptor that is free, which is about the number of open files."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    return free


def count_slots(node: Mapping[str, Any], request: Request) -> float:
    """Return how many more kernels with this request a node has room for; `inf` if they request nothing."""
    slots = math.inf
    if request.cpus:
        slots = min(slots, (node["cpus"] - node["cpus_promised"]) / request.cpus)
    if request.memory_bytes:
        slots = min(slots, (node["memory_bytes"] - node["memory_promised_bytes"]) / request.memory_bytes)
    if request.gpus:
        free = [1 - device["promised"] for device in node["devices"]]
        share = min(1.0, request.gpus)
        slots = min(slots, sum(int(each / share + 1e-6) for each in free) / max(1.0, request.gpus))
    return slots if slots == math.inf else int(max(0.0, slots) + 1e-6)


def _read_request(side: Side) -> Request:
    return read_start_options(dict(side.config), {}).request


def _find_room(side: Side, nodes: Sequence[Mapping[str, Any]], limits: Limits) -> dict[str, float]:
    """Return the memory in bytes that each node can still use before `limits.free` is reached."""
    memory = psutil.virtual_memory()
    here = memory.available - limits.free * memory.total
    if not side.is_roost:
        return {"this machine": here}
    room = {}
    for node in nodes:
        used, total = node.get("memory_used_bytes"), node["memory_bytes"]
        known = total * (1 - limits.free) - used if used is not None and total else here
        room[node["id"]] = min(known, here) if side.config["backend"] == "local" else known
    return room


async def _measure_loads(
    report: Report, side: Side, filled: Filled, limits: Limits, loads: Mapping[str, str]
) -> dict[str, list[Memory]]:
    """Run each load in the kernels. Return by load the memory of some kernels after it."""
    if not filled.kernels:
        return {}
    found = {}
    for load, code in loads.items():
        loaded = await _run_load(report, side, filled, limits, load, code)
        asked = _choose(loaded, _SAMPLE)
        answers = [await filled.await_answer(report, kernel, kernel.read_memory()) for kernel in asked]
        if memory := [each for each in answers if each is not None]:
            found[load] = memory
    return found


async def _run_load(
    report: Report, side: Side, filled: Filled, limits: Limits, load: str, code: str
) -> list[BenchKernel]:
    """Run a load in one kernel after the other until memory gets short. Return the kernels that ran it."""
    loaded: list[BenchKernel] = []
    for count, kernel in enumerate(list(filled.kernels)):
        if load != FIRST and count and count % _WINDOW == 0:
            nodes = await _read_nodes(side)
            if min(_find_room(side, nodes, limits).values()) <= 0:
                what = f"{count} of {len(filled.kernels)} kernels of {side.name} ran {load}"
                report.notes.append(
                    f"Only {what}, because then less than {limits.free:.0%} of the memory was free."
                )
                break
        work = kernel.execute(code) if code else kernel.complete()
        if await filled.await_answer(report, kernel, work) is not None:
            loaded.append(kernel)
    return loaded


def _is_memory(name: str) -> bool:
    return name.startswith(("PSS after", "all in/"))


def _is_main(name: str) -> bool:
    """True for the memory of the kernels that are compared, and not for that of the many that fill the nodes."""
    return _is_memory(name) and not name.rpartition("/")[0].endswith(" kernels")


def _add_memory(report: Report, memory: Sequence[Memory], name: str) -> None:
    for part, title in (("pss", "PSS"), ("uss", "USS"), ("dirty", "private dirty")):
        report.add(f"{title} after {name}", statistics.mean(getattr(each, part) for each in memory), "MiB")
    if any(each.swap for each in memory):
        swap = statistics.mean(each.swap for each in memory)
        report.add(f"swapped after {name}", swap, "MiB")


def conclude(report: Report, filled: Filled, memory: Mapping[str, Sequence[Memory]]) -> None:
    """Put the answer for each node before all notes: how many kernels it holds, by load, and what limits that."""
    answers = []
    counts = filled.count()
    first = statistics.mean(each.pss for each in memory[FIRST]) * MIB
    for node, room in sorted(filled.room.items()):
        held = counts[node]
        holds = {}
        for load, found in memory.items():
            size = statistics.mean(each.pss for each in found) * MIB
            by_memory = int(max(0.0, (room + held * first) / size))
            holds[load] = int(min(by_memory, held + filled.slots.get(node, math.inf)))
        report.capacity[node] = {"started": held, "limit": filled.limit, "why": filled.why, "holds": holds}
        loads = ", ".join(f"{count} after {load}" for load, count in list(holds.items())[1:])
        if filled.limit == "placement":
            text = f"{node} holds {held} kernels, limited by their requests ({filled.why})."
        elif filled.limit == "latency":
            text = f"{node} holds {held} kernels, limited by latency ({filled.why})."
        elif len(set(holds.values())) == 1:
            text = f"{node} holds {holds[FIRST]} kernels, limited by their requests."
        else:
            text = f"{node} holds {holds[FIRST]} idle kernels, {loads}, limited by memory."
        if filled.limit in ("placement", "latency") or holds[FIRST] == held:
            how = f"{held} {'were' if held != 1 else 'was'} started there."
        elif held:
            those = f"{held} that were" if held > 1 else "one that was"
            how = f"This follows from the {those} started there."
        else:
            how = "None was started there: this follows from those on other nodes."
        answers.append(f"{text} {how}")
    if filled.limit == "files":
        answers.append(f"No more kernels were started, because {filled.why}.")
    report.notes[:0] = answers
