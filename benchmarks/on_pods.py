"""What `on_docker.py`, `on_kubernetes.py` and `on_yarn.py` share: kernels in a new pod or container for each start.

start      start_kernel() called, or a gateway's pod or application is being created → first execute_reply
stages     for roost: placed, leased, granted (→ the agent has answered), launched (→ the kernel's ports are open),
           reply. For a gateway: see the script

A gateway's kernel has its ports and key on its command line.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

import roost
from roost.bench.world import elapsed_ms, execute, open_client, start

T = TypeVar("T")

MEMORY_BYTES = 512 << 20
REST_S = 0.3
"""The shortest pause after each case, so that the end of a pod does not count for the next case."""
LOOK_S = 1.0
"""How often a kubelet looks at its containers, and a NodeManager reports."""
GONE_S = 60.0
POLL_S = 0.5
"""How often a gateway looks at its pod or container, by default."""
STAGES = ("placed", "leased", "granted", "launched")
GATEWAY_PORTS = {
    f"{name}_port": 50_001 + number
    for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"))
}
GATEWAY_OPTIONS = (
    "--ip=0.0.0.0",
    *(f"--{port.removesuffix('_port')}={number}" for port, number in GATEWAY_PORTS.items()),
)
"""The command-line options of a gateway's kernel, apart from its key."""


async def plain_life() -> dict[str, float]:
    """Run one kernel on this machine, and return the time to its first reply."""
    manager = AsyncKernelManager(kernel_name="plain")
    try:
        _, reply_ms = await first_reply(manager)
        return {"start": reply_ms}
    finally:
        await manager.shutdown_kernel()


async def roost_life(backend: str, kernelspec: str, count: Callable[[], int]) -> tuple[dict[str, float], str]:
    """Run one kernel of roost, and `rest`. Return stage → milliseconds, and how the kernel was started."""
    manager = AsyncKernelManager(kernel_name=kernelspec)
    try:
        returned_ms, reply_ms = await first_reply(manager)
        kernel = await roost.connect(backend).kernel(manager.kernel_id)
        stages = {f"stage {stage}": kernel.timing_ms[stage] for stage in STAGES}
        return {"start": reply_ms, **stages, "stage reply": reply_ms - returned_ms}, kernel.how
    finally:
        await manager.shutdown_kernel(now=True)
        await rest(count)


async def first_reply(manager: AsyncKernelManager) -> tuple[float, float]:
    """Start a kernel and send a request. Return milliseconds until start_kernel() returned and until the reply."""
    began = time.perf_counter()
    await start(manager)
    returned_ms = elapsed_ms(began)
    async with open_client(manager) as client:
        await execute(client)
        return returned_ms, elapsed_ms(began)


async def reply_of_gateway(ip: str, key: str) -> float:
    """Connect to a gateway's kernel and send a request. Return milliseconds until the reply."""
    client = AsyncKernelClient()
    client.load_connection_info({"ip": ip, "transport": "tcp", "key": key.encode(), **GATEWAY_PORTS})
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    began = time.perf_counter()
    try:
        await execute(client)
    finally:
        client.stop_channels()
    return elapsed_ms(began)


async def create_by_default(find: Callable[[], T | None], code: str, *words: str, content: object) -> T:
    """Create a pod or container as gateways do by default: by a Python process of its own, with JSON as its input.

    Look with `find` every `POLL_S` until it returns something, and return that. Raise RuntimeError if it fails.
    """
    creating = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *words, stdin=asyncio.subprocess.PIPE
    )
    assert creating.stdin is not None
    creating.stdin.write(json.dumps(content).encode())
    creating.stdin.close()
    while True:
        await asyncio.sleep(POLL_S)
        if (found := await asyncio.to_thread(find)) is not None:
            await creating.wait()
            return found
        if creating.returncode:
            raise RuntimeError("the gateway's process could not create a pod or container")


async def rest(count: Callable[[], int]) -> None:
    """Wait until `count` finds no pod any more, and then for a random time of `REST_S` to `REST_S + LOOK_S`."""
    end = time.monotonic() + GONE_S
    while await asyncio.to_thread(count):
        if time.monotonic() > end:
            raise RuntimeError("a kernel's pod or container does not end")
        await asyncio.sleep(0.2)
    await asyncio.sleep(random.uniform(REST_S, REST_S + LOOK_S))
