"""The first kernel of a user on each node of a cluster of three nodes, all on this machine: time to the first reply.

Each kernel takes a whole node, so the next one goes to another node. On a Ray and on a Dask cluster, three cases are
interleaved. A user of roost has a service that runs, and no agent on any node:

plain     plain Jupyter on this machine
ready     the user's first kernel goes to a cold node, and each of the others to a place that roost has prepared
cold      with `ready_places = 0`, all three kernels go to cold nodes, as on a node that has just joined

Before the second and the third kernel is a pause, as a person makes.

Claims (medians): ready ≤ 0.25 × plain, cold ≤ 1.5 × plain. Without Ray and Dask the script prints a note and exits
with 77.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from page_tables import PLAIN_JUPYTER, PageTable

from roost.bench.embedded import embedded, why_not
from roost.bench.kernel import BenchKernel
from roost.bench.report import SKIPPED, Report, interleave, parser
from roost.bench.runs import read_rounds
from roost.bench.sides import Side
from roost.bench.world import (
    PLAIN,
    ROOST,
    own_processes,
    private_world,
    write_config,
    write_kernelspec,
)
from roost.scheduler.client.client import disconnect

CPUS = 2
"""The CPUs of each node, and of each kernel."""
READY_S = 20.0
REST_S = (0.5, 1.5)
"""The pause before a kernel on a cold node, as long as a prepared place takes at least."""
BACKENDS = {"ray": "Ray", "dask": "Dask"}
PLACES = ("first", "second", "third")
TABLE = PageTable(
    name="first_kernels",
    columns={
        PLAIN_JUPYTER: "start/plain beside {}",
        "prepared node": "second/ready on {}",
        "cold node": "second/cold on {}",
        "cold node, the user's very first kernel": "first/cold on {}",
    },
    rows={title: title for title in BACKENDS.values()},
    ratios={
        "prepared ÷ plain": ("prepared node", PLAIN_JUPYTER),
        "cold ÷ plain": ("cold node", PLAIN_JUPYTER),
    },
    corner="start → first `execute_reply`",
    packages=("ray", "distributed"),
)


async def plain_life() -> dict[str, float]:
    kernel = BenchKernel(Side(name="plain", kernelspec="plain"))
    try:
        return {"start": (await kernel.start())["start"]}
    finally:
        await kernel.stop()


async def user_life(side: Side, root: Path, *, ready_places: int) -> dict[str, float]:
    """Start a kernel on each node for a user whose service has just started. Return place → milliseconds."""
    write_config(root, {"RoostScheduler": {"ready_places": ready_places}})
    kernels: list[BenchKernel] = []
    took = {}
    try:
        service = side.connect()
        await service.nodes()  # starts the service, as a Jupyter Server's extension does
        for place in PLACES:
            kernel = BenchKernel(side)
            kernels.append(kernel)
            took[place] = (await kernel.start())["start"]
            used = [(await service.kernel(each.manager.kernel_id)).node_id for each in kernels]
            if len(set(used)) != len(used):
                raise RuntimeError(f"two kernels have gone to one node: {used}")
            if ready_places and place != PLACES[-1]:
                await until_prepared(service, used)
            await asyncio.sleep(random.uniform(*REST_S))
    finally:
        for kernel in kernels:
            await kernel.stop()
        disconnect()
        await asyncio.to_thread(end_roost, root / "r", root / "n")
        shutil.rmtree(root / "r")  # with the addresses of the agents
    return took


async def until_prepared(service: Any, used: list[str]) -> None:
    """Wait until a process is warm on another node than those `used`. Raise RuntimeError if none is."""
    end = time.monotonic() + READY_S
    while not any(node["warm"] for node in await service.nodes() if node["id"] not in used):
        if time.monotonic() > end:
            raise RuntimeError("no place was prepared for the next kernel")
        await asyncio.sleep(0.1)


def end_roost(*folders: Path) -> None:
    """End the service and the agents, with their zygotes, that have these runtime folders. The cluster lives on."""
    found = [process for folder in folders for process in own_processes(str(folder))]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(found, timeout=READY_S)


async def measure(report: Report, backend: str, root: Path, rounds: int) -> None:
    """Measure the cases on a cluster of this kind, and compare them."""
    title = BACKENDS[backend]
    side = Side(name=backend, kernelspec=backend, config={"backend": backend, "cpus": CPUS})
    write_kernelspec(root / "jupyter_path" / "kernels" / side.kernelspec, ROOST, side.config)
    plain, ready, cold = (f"{case} {title}" for case in ("plain beside", "ready on", "cold on"))
    cases = {
        plain: plain_life,
        ready: partial(user_life, side, root, ready_places=1),
        cold: partial(user_life, side, root, ready_places=0),
    }
    with embedded(backend, root, cpus=[CPUS] * len(PLACES)):
        await interleave(report, cases, rounds=rounds)
    for case, bound in ((ready, 0.25), (cold, 1.5)):
        for place in PLACES[1:]:
            name = f"{place} kernel: {case} ÷ plain"
            report.ratio(name, f"{place}/{case}", f"start/{plain}")
            report.claim(name, at_most=bound)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each case (default 20, quick 3)")
    arguments = options.parse_args()
    missing = {backend: reason for backend in BACKENDS if (reason := why_not(backend))}
    if len(missing) == len(BACKENDS):
        print(*missing.values(), sep="\n", file=sys.stderr)
        return SKIPPED
    rounds = read_rounds(arguments)
    report = Report("first kernels", rounds=rounds, cpus=CPUS)
    with private_world({"plain": PLAIN}) as root:
        for backend in [each for each in BACKENDS if each not in missing]:
            asyncio.run(measure(report, backend, root, rounds))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
