"""Memory of idle kernels: proportional set size (PSS) per kernel after `1+1`, plain Jupyter against roost.

The two sides are measured one after the other. At the same time, plain kernels would share library pages with roost's
kernels and look smaller. roost's fixed costs (service, agent, zygotes) are listed, and a second figure spreads them
over the kernels. Claim: PSS per kernel ≤ 0.5 × plain at 50 kernels. Linux only (smaps_rollup).
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from roost.bench.report import Report, parser
from roost.bench.world import (
    MIB,
    PLAIN,
    ROOST,
    execute,
    fixed_pss_bytes,
    kernels,
    open_client,
    private_world,
    pss_bytes,
    read_pid,
    wait_until_forked,
)

CODE = {"1+1": "1+1", "numpy": "import numpy; numpy.ones((64, 64)) @ numpy.ones((64, 64))"}


def total_pss_bytes(pids: Iterable[int]) -> int:
    return sum(pss_bytes(pid) for pid in pids)


async def measure_side(report: Report, name: str, arguments: Namespace, count: int) -> None:
    """Start `count` kernels, run the code in each, and add their memory to the report."""
    async with kernels(name, count) as managers:
        pids = []
        for manager in managers:
            async with open_client(manager) as client:
                pids.append(await read_pid(client))
        report.add(f"1+1/{name}", total_pss_bytes(pids) / count / MIB, "MiB per kernel")
        fixed = fixed_pss_bytes(pids) if name == "roost" else Counter()
        for process, used in fixed.items():
            report.add(f"fixed {process}/{name}", used / MIB, "MiB")
        spread = total_pss_bytes(pids) + fixed.total()
        report.add(f"1+1, fixed spread/{name}", spread / count / MIB, "MiB per kernel")
        if arguments.numpy:
            for manager in managers:
                async with open_client(manager) as client:
                    await execute(client, CODE["numpy"])
            report.add(f"numpy/{name}", total_pss_bytes(pids) / count / MIB, "MiB per kernel")


async def measure(arguments: Namespace) -> Report:
    count = arguments.kernels or (10 if arguments.quick else 50)
    rounds = arguments.rounds or (1 if arguments.quick else 2)
    report = Report("memory", kernels=count, rounds=rounds, provisioner=arguments.provisioner)
    if arguments.provisioner == ROOST and not await wait_until_forked("roost"):
        report.notes.append("No kernel was forked: the figures are for kernels started from their command.")
    for _ in range(rounds):
        await measure_side(report, "plain", arguments, count)
        await measure_side(report, "roost", arguments, count)
    for stage in ("1+1", "1+1, fixed spread", *(["numpy"] if arguments.numpy else [])):
        report.ratio(f"{stage}: roost ÷ plain", f"{stage}/roost", f"{stage}/plain")
    report.claim(
        f"PSS per idle kernel at {count}, roost ÷ plain",
        report.ratios["1+1: roost ÷ plain"].of_medians,
        at_most=0.5,
    )
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--kernels", type=int, help="number of kernels at the same time (default 50, quick 10)"
    )
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 2, quick 1)")
    options.add_argument(
        "--numpy", action="store_true", help="measure again after numpy was imported and used"
    )
    options.add_argument(
        "--provisioner", default=ROOST, help="provisioner to compare with plain Jupyter (default roost)"
    )
    arguments = options.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("memory.py needs Linux: there is no /proc/self/smaps_rollup here", file=sys.stderr)
        return 0
    with private_world({"plain": PLAIN, "roost": arguments.provisioner}):
        report = asyncio.run(measure(arguments))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
