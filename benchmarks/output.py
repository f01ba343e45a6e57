"""Output of a running kernel: plain Jupyter against roost, whose agents record what kernels publish.

Both kernels live during the whole run, and have one client, which reads everything.

round trip   a cell of `1+1` → its reply
lines        a cell that prints and flushes 2,000 lines → its last message on IOPub
text         a cell that prints 10 MB in one piece → the same
displays     a cell that displays 2,000 objects → the same
kernel CPU   the CPU time of the kernel itself in each of these cells
agent CPU    the CPU time of roost's agent in each of these cells

Messages of the plain kernel are encrypted as well, so that the figures show the cost of the record alone. Claims, of
medians: each time ≤ 1.1 × plain.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from argparse import Namespace
from contextlib import AsyncExitStack
from functools import partial

import psutil
from claims import Report, interleave, parser
from jupyter_client.asynchronous.client import AsyncKernelClient
from local_kernels import kernels
from page_tables import compare_with_plain

from roost.bench.world import (
    PLAIN,
    ROOST,
    RUNTIME,
    elapsed_ms,
    execute,
    open_client,
    private_world,
    processes,
    wait_until_forked,
)

ROUND_TRIPS = 50
CELLS = {
    "lines": "for i in range(2000): print('line', i, flush=True)",
    "text": "print('x' * 10_000_000)",
    "displays": "for i in range(2000): display(i)",
}
IDLE_S = 60.0
TABLE = compare_with_plain(
    name="output",
    rows={
        "round trip of `1+1`": "round trip",
        "2,000 lines, each flushed": "lines",
        "10 MB in one piece": "text",
        "2,000 displays": "displays",
        **{
            f"processor time of the {part} for the {cell}": f"{part} CPU, {stage}"
            for part in ("kernel", "agent")
            for cell, stage in {"lines": "lines", "10 MB": "text", "displays": "displays"}.items()
        },
    },
    plain="plain kernel",
)


async def read_pid(client: AsyncKernelClient) -> int:
    """Run `1+1`, and return the kernel's process id from the same request."""
    reply = await execute(client, "1+1", user_expressions={"pid": "__import__('os').getpid()"})
    return int(reply["user_expressions"]["pid"]["data"]["text/plain"])


async def measure_kernel(
    client: AsyncKernelClient, kernel: psutil.Process, agent: psutil.Process | None
) -> dict[str, float]:
    """Run each cell once. Return milliseconds by stage."""
    took = {"round trip": await round_trip(client)}
    for name, code in CELLS.items():
        before = cpu_ms(kernel), cpu_ms(agent) if agent else 0.0
        began = time.perf_counter()
        wanted = client.execute(code, store_history=False)
        await asyncio.wait_for(wait_until_idle(client, wanted), IDLE_S)
        took[name] = elapsed_ms(began)
        await asyncio.sleep(0.2)  # the agent reads the rest
        took[f"kernel CPU, {name}"] = cpu_ms(kernel) - before[0]
        if agent:
            took[f"agent CPU, {name}"] = cpu_ms(agent) - before[1]
    return took


async def round_trip(client: AsyncKernelClient) -> float:
    samples = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        await execute(client)
        samples.append(elapsed_ms(began))
    return statistics.median(samples)


async def wait_until_idle(client: AsyncKernelClient, request_id: str) -> None:
    while True:
        message = await client.get_iopub_msg(timeout=IDLE_S)
        is_status = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
        if is_status and message["parent_header"].get("msg_id") == request_id:
            return


def cpu_ms(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system) * 1e3


async def measure(arguments: Namespace) -> Report:
    rounds = arguments.rounds or (2 if arguments.quick else 20)
    report = Report("output", rounds=rounds)
    await wait_until_forked("roost")
    async with AsyncExitStack() as stack:
        cases = {}
        for name, traits in {"plain": {"transport_encryption": "required"}, "roost": {}}.items():
            [manager] = await stack.enter_async_context(kernels(name, 1, **traits))
            client = await stack.enter_async_context(open_client(manager, iopub=True))
            kernel = psutil.Process(await read_pid(client))
            agent = find_agent() if name == "roost" else None
            cases[name] = partial(measure_kernel, client, kernel, agent)
        await interleave(report, cases, rounds=rounds, warm_up=2)
    for stage in ("round trip", *CELLS, *(f"kernel CPU, {name}" for name in CELLS)):
        report.ratio(f"{stage}: roost ÷ plain", f"{stage}/roost", f"{stage}/plain")
        if "CPU" not in stage:
            report.claim(f"{stage}: roost ÷ plain", at_most=1.1)
    return report


def find_agent() -> psutil.Process:
    """Return the process of the agent."""
    found = processes(os.environ[RUNTIME])
    (agent,) = (each for each in found if "roost.launchers.agent.main" in " ".join(each.cmdline()))
    return agent


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 2)")
    arguments = options.parse_args()
    with private_world({"plain": PLAIN, "roost": ROOST}):
        report = asyncio.run(measure(arguments))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
