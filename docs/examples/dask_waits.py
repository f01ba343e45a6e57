"""A Dask task that asks for the GPU of a kernel. It waits, and runs when the kernel has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

LOOK_S = 1.0
RUN_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """The result of the task. `state` is its state while the kernel lived, or "" if it had run already.

    `after_ms` is the time from the call that ends the kernel to the task's run. `worker` is the name of its worker.
    """

    state: str
    after_ms: float
    worker: str


async def wait_for_kernel(
    address: str, resources: Mapping[str, float], end_kernel: Callable[[], Awaitable[object]]
) -> Waited:
    """Submit a task that asks for `resources`, read its state a second later, end the kernel, and return the result.

    Raise TimeoutError if the task does not run after the kernel's end.
    """
    from distributed import Client, wait

    async with Client(address, asynchronous=True) as client:
        future = client.submit(time.time, resources=dict(resources), pure=False)
        await asyncio.wait([asyncio.ensure_future(wait(future))], timeout=LOOK_S)
        state = ""
        if not future.done():
            key = future.key
            state = await client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks[key].state)
        ended_at = time.time()
        await end_kernel()
        ran_at = await asyncio.wait_for(future, RUN_TIMEOUT_S)
        workers = (await client.who_has([future]))[future.key]
        names = await client.run(lambda dask_worker: dask_worker.name, workers=list(workers))
    return Waited(state=state, after_ms=(ran_at - ended_at) * 1000, worker=str(next(iter(names.values()))))
