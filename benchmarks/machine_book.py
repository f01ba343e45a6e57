"""The cost of the machine's book at a start. A kernel that asks for CPUs is a promise in the book; another is not.

without    start_kernel() called → first reply, of a kernel without a promise
with       the same of a kernel with a promise
added      with − without, of two starts in a row, in an order that changes
crowded    the same difference while five other agents hold 50 promises

The book is in memory, as /run is where systemd runs. Limits are off, because they cost something of their own. Claims,
of medians: added ≤ 1 ms, also while others hold promises; the agent uses no CPU while nothing happens (1 s).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
from claims import Report, interleave, parser
from local_kernels import time_start
from page_tables import PageTable

import roost
from roost.bench.world import (
    ROOST,
    private_world,
    wait_until_forked,
    write_config,
    write_kernelspec,
)
from roost.launchers.daemon.process import start_time
from roost.launchers.machine_book.promise import Keeper, Promise, encode_promise, name_file, write_file

IN_MEMORY = Path("/dev/shm")
OTHERS = 50
IDLE_S = 1.0
TABLE = PageTable(
    name="machine_book",
    columns={"time": "{}"},
    rows={
        "start → first reply, without a promise": "without/pair",
        "the same with a promise": "with/pair",
        "the time that a promise adds": "added/pair",
        "the same while others hold 50 promises": "added/crowded",
        "CPU time of the agent in an idle second": "idle/agent",
    },
)
_first = itertools.cycle([("free", "promised"), ("promised", "free")])


async def measure_pair() -> dict[str, float]:
    took = {name: await time_start(name, pause_s=0.15) for name in next(_first)}
    return {
        "without": took["free"],
        "with": took["promised"],
        "added": took["promised"] - took["free"],
    }


async def measure_idle(agent: psutil.Process) -> dict[str, float]:
    """Return the milliseconds of CPU time that the agent uses in `IDLE_S` without any work."""
    await asyncio.sleep(0.5)
    before = sum(agent.cpu_times()[:2])
    await asyncio.sleep(IDLE_S)
    return {"idle": (sum(agent.cpu_times()[:2]) - before) * 1e3}


@contextmanager
def crowd(book: Path, others: int) -> Iterator[None]:
    """Hold promises as other agents of this user, ten by each, while the block runs."""
    me = Keeper(pid=os.getpid(), started_at=start_time(os.getpid()))
    promises = {str(number): encode_promise(Promise(cpus=0.001)) for number in range(10)}
    paths = [book / name_file(os.getuid(), f"crowd {number}") for number in range(others // 10)]
    for path in paths:
        write_file(path, me, promises)
    try:
        yield
    finally:
        for path in paths:
            path.unlink()


def find_agent() -> psutil.Process:
    """Return the agent of this world."""
    folder = os.environ["ROOST_RUNTIME_DIR"]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "roost.launchers.agent.main" in words and any(word.startswith(folder) for word in words):
            return process
    raise AssertionError("no agent runs")


async def measure(arguments: Namespace, book: Path) -> Report:
    rounds = arguments.rounds or (5 if arguments.quick else 200)
    report = Report("machine_book", rounds=rounds)
    await wait_until_forked("free")
    await interleave(report, {"pair": measure_pair}, rounds=rounds, warm_up=2)
    with crowd(book, OTHERS):
        await interleave(report, {"crowded": measure_pair}, rounds=rounds, warm_up=2)
    await roost.connect("local").up()
    await interleave(report, {"agent": partial(measure_idle, find_agent())}, rounds=min(rounds, 10))
    report.claim("added/pair", at_most=1.0)
    report.claim("added/crowded", at_most=1.0)
    report.claim("idle/agent", at_most=0.0)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions (default 200, quick 5)")
    arguments = options.parse_args()
    with private_world({"free": ROOST}) as root:
        write_kernelspec(root / "jupyter_path" / "kernels" / "promised", ROOST, {"cpus": 0.1})
        write_config(root, {"RoostLocalBackend": {"enforce": "never"}})
        with tempfile.TemporaryDirectory(prefix="rb-", dir=IN_MEMORY if IN_MEMORY.is_dir() else root) as book:
            os.environ["ROOST_MACHINE_DIR"] = book
            report = asyncio.run(measure(arguments, Path(book)))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
