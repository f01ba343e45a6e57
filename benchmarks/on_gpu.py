"""PyTorch on a real GPU: the time from nothing to a result on the GPU, and the memory of a kernel that has one.

start            start_kernel() called → first reply
import           a cell that imports torch → its reply
product          a cell that multiplies two matrices on the GPU → its reply. It makes the GPU's context
to a result      start_kernel() called → the reply of that product
PSS              the memory of each of 4 kernels with such a result
GPU memory       what the driver counts for each of them

roost's kernels are forked from a process that has loaded torch (`preload`), and ask for a quarter of the GPU. Claims,
of medians, roost ÷ plain: to a result ≤ 0.25; PSS ≤ 0.6. Without a GPU or torch, the script prints a note and exits
with 77.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from claims import SKIPPED, Report, parser
from page_tables import compare_with_plain

from roost.bench.kernel import BenchKernel
from roost.bench.report import take_turns
from roost.bench.runs import measure_sides, read_rounds
from roost.bench.sides import Side, read_sides
from roost.bench.starts import REST_S
from roost.bench.world import elapsed_ms
from roost.launchers.agent.machine.gpus import DeviceReader
from roost.launchers.agent.machine.nvml import list_gpus

KERNELS = 4
PACKAGE = "torch"
PRODUCT = "x = torch.ones(2048, 2048, device='cuda'); assert float((x @ x).sum()) == 2048 ** 3"
STAGES = ("start", "import", "product", "to a result")
AT_MOST = {"to a result": 0.25, "PSS": 0.6}
LOADED_S = 120.0
TABLE = compare_with_plain(
    name="on_gpu",
    rows={
        "start → first `execute_reply`": "start",
        "a cell that imports torch": "import",
        "a cell with the first product on the GPU": "product",
        "start → the result of that product": "to a result",
        f"PSS of each of {KERNELS} kernels with such a result": "PSS",
        "GPU memory of each of them": "GPU memory",
    },
)


async def measure_result(kernel: BenchKernel) -> dict[str, float]:
    """Start a kernel and let it compute on the GPU. Return milliseconds by stage."""
    began = time.perf_counter()
    took = await kernel.start()
    took["import"] = await kernel.execute(f"import {PACKAGE}")
    took["product"] = await kernel.execute(PRODUCT)
    return {**took, "to a result": elapsed_ms(began)}


async def wait_until_loaded(side: Side) -> None:
    """Start kernels until one is forked from a process that has loaded the package."""
    end = time.monotonic() + LOADED_S
    is_loaded = False
    while not is_loaded:
        if time.monotonic() > end:
            raise RuntimeError(f"no kernel had {PACKAGE} loaded within {LOADED_S:.0f} s")
        async with BenchKernel(side) as kernel:
            is_loaded = await kernel.evaluate(f"{PACKAGE!r} in __import__('sys').modules")


async def measure_memory(report: Report, side: Side, devices: DeviceReader) -> None:
    async with AsyncExitStack() as stack:
        kernels = [BenchKernel(side) for _ in range(KERNELS)]
        for kernel in kernels:
            stack.push_async_callback(kernel.stop)
            await measure_result(kernel)
        for kernel in kernels:
            report.add(f"PSS/{side.name}", (await kernel.read_memory()).pss, "MiB")
        devices.read(10.0)
        for kernel in kernels:
            pid = await kernel.evaluate("__import__('os').getpid()")
            if held := devices.memory_by_pid.get(pid):  # not in most containers
                report.add(f"GPU memory/{side.name}", held / (1 << 20), "MiB")


async def measure(report: Report, sides: Sequence[Side], *, rounds: int) -> None:
    names = {side.name: side for side in sides}
    await wait_until_loaded(sides[0])
    for name, is_warm in take_turns("to a result", list(names), rounds=rounds):
        await asyncio.sleep(REST_S)
        kernel = BenchKernel(names[name])
        try:
            took = await measure_result(kernel)
        finally:
            await kernel.stop()
        if is_warm:
            for stage, value in took.items():
                report.add(f"{stage}/{name}", value, "ms")
    devices = DeviceReader()
    for side in sides:
        await measure_memory(report, side, devices)
    devices.close()
    for stage in (*STAGES, "PSS", "GPU memory"):
        report.compare(stage, list(names))
    for stage, bound in AT_MOST.items():
        report.claim(f"{stage}: roost ÷ plain", at_most=bound)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    arguments = options.parse_args()
    if not asyncio.run(list_gpus()) or importlib.util.find_spec(PACKAGE) is None:
        print("on_gpu.py needs an NVIDIA GPU and PyTorch.", file=sys.stderr)
        return SKIPPED
    rounds = read_rounds(arguments)
    sides = read_sides({"backend": "local", "gpus": 0.25}, ["plain"], {"preload": [PACKAGE]})
    report = Report("on_gpu", rounds=rounds, kernels=KERNELS)
    return measure_sides(arguments, report, sides, partial(measure, rounds=rounds))


if __name__ == "__main__":
    sys.exit(main())
