"""The cost of limits on CPU and memory, and the effect of a kernel that runs out of memory on another kernel.

start        start_kernel() called → first reply, of a kernel with limits (`limited`) and of one without (`free`)
round trip   a cell of `1+1` in that other kernel, the neighbour → its reply: while nothing else runs (`alone`), and
             while a kernel fills its memory and ends (`beside`)
end          the cell that fills the memory is sent → the kernel's end is known here
free         `restart_grace_s` after that end → the lease is free

Claims, of medians: start with limits ≤ 1.1 × without; a neighbour's round trip ≤ 2 × alone; end ≤ 1,000 ms; free ≤
1,000 ms. Where roost cannot use control groups, the script prints a note and exits with 77.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Awaitable
from functools import partial

from claims import SKIPPED, Report, interleave, parser
from jupyter_client.asynchronous.client import AsyncKernelClient
from local_kernels import kernels, time_start
from page_tables import PageTable

import roost
from roost.bench.world import (
    ROOST,
    elapsed_ms,
    execute,
    open_client,
    private_world,
    wait_until_forked,
    write_config,
    write_kernelspec,
)
from roost.launchers.agent.limits.cgroups import CgroupTree, NoCgroups

LIMIT = {"memory": "512MiB", "cpus": 0.5}
FILL = """
data = []
while True:
    data.append(bytearray(16 << 20))
    data[-1][::4096] = b"x" * 4096
"""
ALONE_S = 1.0
GRACE_S = 1.0
"""The setting `restart_grace_s`. It is short because nobody restarts these kernels."""
FREE_BY_S = 30.0
TABLE = PageTable(
    name="limits",
    columns={"without": "{}/free", "with": "{}/limited"},
    rows={
        "start → first reply, without and with limits": "start",
        "a neighbour's round trip, without and with a kernel that runs out of memory": [
            "round trip alone/roost",
            "round trip beside/roost",
        ],
        "cell that fills the memory sent → the end is known": ["", "end/roost"],
        "the lease is free this long after its time": ["", "free/roost"],
    },
    ratios={"with ÷ without": ("with", "without")},
)


async def measure_start(name: str) -> dict[str, float]:
    return {"start": await time_start(name)}


async def measure_neighbour(client: AsyncKernelClient) -> dict[str, float]:
    """Measure the round trips of a neighbour alone and beside a kernel that fills its memory."""
    found = {"round trip alone": await measure_until(client, asyncio.sleep(ALONE_S))}
    async with kernels("limited", 1) as [manager], open_client(manager) as other:
        began = time.perf_counter()
        other.execute(FILL)
        found["round trip beside"] = await measure_until(client, manager.provisioner.wait())
        found["end"] = elapsed_ms(began)
        kernel = await roost.connect("local").kernel(manager.kernel_id)
        assert kernel.is_out_of_memory, kernel.reason
        found["free"] = await asyncio.wait_for(measure_release(manager.kernel_id), FREE_BY_S)
    return found


async def measure_release(kernel_id: str) -> float:
    """Wait until an ended kernel's lease is free. Return the milliseconds since the end of `GRACE_S`."""
    while True:
        events = await roost.connect("local").events()
        at = {event.kind: event.at for event in events if event.kernel and event.kernel.id == kernel_id}
        if "released" in at:
            return (at["released"] - at["exited"] - GRACE_S) * 1e3
        await asyncio.sleep(0.05)


async def measure_until(client: AsyncKernelClient, end: Awaitable[object]) -> float:
    """Return the median of the round trips until `end`, in milliseconds."""
    samples, ending = [], asyncio.ensure_future(end)
    while not ending.done():
        began = time.perf_counter()
        await execute(client)
        samples.append(elapsed_ms(began))
    return statistics.median(samples)


async def measure(arguments: Namespace) -> Report:
    rounds = arguments.rounds or (3 if arguments.quick else 20)
    report = Report("limits", rounds=rounds)
    await wait_until_forked("free")
    cases = {name: partial(measure_start, name) for name in ("limited", "free")}
    await interleave(report, cases, rounds=rounds, warm_up=2)
    async with kernels("limited", 1) as [manager], open_client(manager) as client:
        await interleave(report, {"roost": partial(measure_neighbour, client)}, rounds=rounds)
    report.ratio("start: limited ÷ free", "start/limited", "start/free")
    report.claim("start: limited ÷ free", at_most=1.1)
    report.ratio("round trip: beside ÷ alone", "round trip beside/roost", "round trip alone/roost")
    report.claim("round trip: beside ÷ alone", at_most=2.0)
    for stage in ("end", "free"):
        report.claim(f"{stage}/roost", at_most=1000.0)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    arguments = options.parse_args()
    try:
        CgroupTree("roost-bench")
    except NoCgroups as problem:
        print(f"roost cannot use control groups here: {problem}.")
        return SKIPPED
    with private_world({"free": ROOST}) as root:
        write_kernelspec(root / "jupyter_path" / "kernels" / "limited", ROOST, LIMIT)
        write_config(root, {"RoostScheduler": {"restart_grace_s": GRACE_S}})
        report = asyncio.run(measure(arguments))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
