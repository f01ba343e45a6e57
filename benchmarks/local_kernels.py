"""Kernels of the scripts that measure this machine: several that stay, and the time of one start."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from jupyter_client.manager import AsyncKernelManager

from roost.bench.world import REPLY_TIMEOUT_S, elapsed_ms, execute, make_manager, open_client, start

FIRST_S = 20.0
"""How long a kernel may take to answer for the first time before it is started again."""


@asynccontextmanager
async def kernels(
    name: str, count: int, *, options: Mapping[str, Any] | None = None, **traits: Any
) -> AsyncIterator[list[AsyncKernelManager]]:
    """Start `count` kernels of one kernelspec, four at a time, and stop them at the end. `traits` are the managers'.

    Plain Jupyter chooses ports before the kernel binds them. Sometimes another kernel takes such a port first, and the
    kernel never answers. A kernel that does not answer is therefore started again, at most twice.
    """
    managers = [make_manager(name, options or {}, **traits) for _ in range(count)]
    gate = asyncio.Semaphore(4)

    async def bring_up(manager: AsyncKernelManager) -> None:
        for last in (False, False, True):
            async with gate:
                await start(manager)
                try:
                    async with open_client(manager) as client:
                        await asyncio.wait_for(execute(client, "pass"), REPLY_TIMEOUT_S if last else FIRST_S)
                    return
                except asyncio.TimeoutError:
                    if last:
                        raise
                    print(f"a kernel of {name} did not answer and is started again", file=sys.stderr)
                    await manager.shutdown_kernel(now=True)

    try:
        await asyncio.gather(*(bring_up(manager) for manager in managers))
        yield managers
    finally:
        started = [manager for manager in managers if manager.has_kernel]
        await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in started))


async def time_start(name: str, *, pause_s: float = 0.3) -> float:
    """Start a kernel of one kernelspec and stop it. Return the milliseconds until its first reply.

    It starts after a pause, in which a spare is forked.
    """
    await asyncio.sleep(pause_s)
    manager = make_manager(name, {})
    began = time.perf_counter()
    await start(manager)
    try:
        async with open_client(manager) as client:
            await execute(client)
        return elapsed_ms(began)
    finally:
        await manager.shutdown_kernel(now=True)
