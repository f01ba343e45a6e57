"""Kernel starts: plain Jupyter against roost, interleaved, through AsyncKernelManager.

start      start_kernel() called → first execute_reply; the request is sent as soon as start_kernel() returns
interrupt  interrupt_kernel() called → the busy cell's reply
restart    restart_kernel() called → first execute_reply of the new process
shutdown   shutdown_kernel() called → returned
burst      five starts at once (asyncio.gather) on an idle machine: kernels per second until all five have replied
cold       a start in a new process, without a service and an agent, by stage (roost only)

`wait_for_ready()` is not used: it has a floor of 0.2 s. Claims, of medians: start ≤ 0.20 × plain; restart and
shutdown ≤ 1 ×; burst ≥ 6 ×.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping
from functools import partial

from jupyter_client.manager import AsyncKernelManager

from roost.bench.report import Report, interleave, parser
from roost.bench.world import (
    PLAIN,
    ROOST,
    RUNTIME,
    elapsed_ms,
    end_processes,
    execute,
    first_reply,
    open_client,
    private_world,
    reply_to,
    wait_until_forked,
)

AT_ONCE = 5
REST_S = 0.5
"""Pause before each burst, so that the end of the previous burst does not count."""
BUSY = "print('busy', flush=True)\nimport time; time.sleep(60)"
COLD_DEADLINE_S = 120
SETTLE_S = 0.05


async def life(name: str, *, is_roost: bool = False) -> dict[str, float]:
    """Run one kernel from start to shutdown. Return stage → milliseconds, including the stages that roost timed."""
    manager = AsyncKernelManager(kernel_name=name)
    took = {}
    try:
        took = await first_reply(manager)
        if is_roost:
            took |= {f"start stage {stage}": value for stage, value in (await read_timing(manager)).items()}
        async with open_client(manager, iopub=True) as client:
            await execute(client)  # connect first, so that only the interrupt is measured
            busy = client.execute(BUSY)
            while (await client.get_iopub_msg(timeout=10))["msg_type"] != "stream":
                pass
            # Wait until the cell sleeps. ipykernel 7.4 hangs in about one of a thousand interrupts while it still
            # prints, with any provisioner.
            await asyncio.sleep(SETTLE_S)
            began = time.perf_counter()
            await manager.interrupt_kernel()
            reply = await reply_to(client, busy)
            took["interrupt"] = elapsed_ms(began)
            if reply["status"] != "error":
                raise RuntimeError(f"the interrupted cell answered {reply['status']}")
        began = time.perf_counter()
        await manager.restart_kernel()
        async with open_client(manager) as client:
            await execute(client)
        took["restart"] = elapsed_ms(began)
    finally:
        began = time.perf_counter()
        await manager.shutdown_kernel()
        took["shutdown"] = elapsed_ms(began)
    return took


async def read_timing(manager: AsyncKernelManager) -> Mapping[str, float]:
    """Return the timing that the scheduler has recorded for the kernel."""
    import roost

    return (await roost.connect("local").kernel(manager.kernel_id)).timing_ms


async def burst(name: str, report: Report) -> dict[str, float]:
    """Start AT_ONCE kernels in parallel. Return kernels per second.

    Plain Jupyter chooses ports before the kernel binds them. If another kernel takes such a port first, the kernel
    never answers, and the burst is repeated.
    """
    await asyncio.sleep(REST_S)
    managers = [AsyncKernelManager(kernel_name=name) for _ in range(AT_ONCE)]
    try:
        began = time.perf_counter()
        await asyncio.gather(*map(first_reply, managers))
        rate = AT_ONCE / (time.perf_counter() - began)
    except asyncio.TimeoutError:
        if name != "plain":
            raise RuntimeError(f"a kernel of {name} did not answer") from None
        report.notes.append("A plain kernel did not answer: its burst was repeated.")
        rate = 0.0
    finally:
        await asyncio.gather(
            *(manager.shutdown_kernel(now=True) for manager in managers if manager.has_kernel)
        )
    return {"burst": rate} if rate else await burst(name, report)


async def first_start(name: str) -> None:
    """Start one kernel in a fresh process, and print milliseconds by stage as JSON."""
    manager = AsyncKernelManager(kernel_name=name)
    try:
        replied = await first_reply(manager)
        took = {"total": replied["start"], "start_kernel returned": replied["start_kernel returned"]}
        took |= {f"stage {stage}": value for stage, value in (await read_timing(manager)).items()}
    finally:
        await manager.shutdown_kernel(now=True)
    print(json.dumps(took))


def cold(name: str) -> dict[str, float]:
    """Measure one first start, in a new process and a new runtime folder."""
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as folder:
        environment = {**os.environ, RUNTIME: folder}
        try:
            command = [sys.executable, __file__, "--first-start", name]
            done = subprocess.run(
                command,
                env=environment,
                timeout=COLD_DEADLINE_S,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            took: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return took
        finally:
            end_processes(folder)


async def measure(arguments: Namespace) -> Report:
    rounds = arguments.rounds or (3 if arguments.quick else 20)
    is_roost = arguments.provisioner == ROOST
    report = Report("start", rounds=rounds, at_once=AT_ONCE, provisioner=arguments.provisioner)
    if is_roost and not await wait_until_forked("roost"):
        report.notes.append("No kernel was forked: the figures are for kernels started from their command.")
    peers = [arguments.peer] if arguments.peer else []
    lives = {name: partial(life, name) for name in ("plain", "roost", *peers)}
    lives["roost"] = partial(life, "roost", is_roost=is_roost)
    await interleave(report, lives, rounds=rounds, warm_up=2)
    bursts = {name: partial(burst, name, report) for name in ("plain", "roost", *peers)}
    await interleave(report, bursts, rounds=rounds, unit="kernels/s")
    for stage in ("start", "interrupt", "restart", "shutdown", "burst"):
        for peer in ["plain", *peers]:
            report.ratio(f"{stage}: roost ÷ {peer}", f"{stage}/roost", f"{stage}/{peer}")
    if is_roost:
        for _ in range(2 if arguments.quick else 5):
            for stage, value in (await asyncio.to_thread(cold, "roost")).items():
                report.add(f"cold {stage}/roost", value, "ms")
    ratios = report.ratios
    report.claim("start, roost ÷ plain", ratios["start: roost ÷ plain"].of_medians, at_most=0.20)
    report.claim("restart, roost ÷ plain", ratios["restart: roost ÷ plain"].of_medians, at_most=1.0)
    report.claim("shutdown, roost ÷ plain", ratios["shutdown: roost ÷ plain"].of_medians, at_most=1.0)
    report.claim("burst, roost ÷ plain", ratios["burst: roost ÷ plain"].of_medians, at_least=6.0)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    options.add_argument(
        "--provisioner", default=ROOST, help="provisioner to compare with plain Jupyter (default roost)"
    )
    options.add_argument(
        "--peer",
        metavar="KERNELSPEC",
        help="an installed kernelspec of another provisioner, to measure as well",
    )
    options.add_argument(
        "--first-start", metavar="KERNELSPEC", help="internal: measure one start and print JSON"
    )
    arguments = options.parse_args()
    if arguments.first_start:
        asyncio.run(first_start(arguments.first_start))
        return 0
    keep = [arguments.peer] if arguments.peer else []
    with private_world({"plain": PLAIN, "roost": arguments.provisioner}, installed=keep):
        report = asyncio.run(measure(arguments))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
