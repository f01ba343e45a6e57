"""The first start: a kernel in a new process and a new runtime folder, where no service runs.

first start             start_kernel() called → first reply. On this machine an agent and a zygote start too
first start, returned   the same → start_kernel() returned
first start, stage ...  what roost's scheduler timed
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from .kernel import BenchKernel, NoAnswer
from .sides import Side
from .world import NEUTRAL, RUNTIME, end_processes

DEADLINE_S = 120.0


async def measure_first(side: Side, runtime_dir: Path) -> dict[str, float]:
    """Start one kernel of a side of roost in a new process. Return milliseconds by stage.

    Raise `NoAnswer` if the kernel does not start or answer. At the end, the processes of `runtime_dir` are ended.
    """
    command = (sys.executable, "-m", __name__, json.dumps(asdict(side)))
    environment = {**os.environ, RUNTIME: str(runtime_dir)}
    starting = await asyncio.create_subprocess_exec(
        *command, cwd=NEUTRAL, env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        printed, _ = await asyncio.wait_for(starting.communicate(), DEADLINE_S)
    except asyncio.TimeoutError:
        raise NoAnswer(f"the first kernel of {side.name} did not answer") from None
    finally:
        await asyncio.to_thread(end_processes, str(runtime_dir))
    if starting.returncode:
        raise NoAnswer(f"the first kernel of {side.name} was not started")
    took: dict[str, float] = json.loads(printed.splitlines()[-1])
    return took


async def _start(side: Side) -> Mapping[str, float]:
    kernel = BenchKernel(side)
    try:
        took = await kernel.start()
        found = await side.connect().kernel(kernel.manager.kernel_id)
    finally:
        await kernel.stop()
    stages = {f"first start, stage {stage}": value for stage, value in found.timing_ms.items()}
    return {"first start": took["start"], "first start, returned": took["start_kernel returned"], **stages}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_start(Side(**json.loads(sys.argv[1]))))))
