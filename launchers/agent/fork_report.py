"""A kernel that was forked tells the agent its pid and then its ports, through a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class KernelDiedEarly(Exception):
    """A forked kernel ended before it reported its ports; its exit status goes to whoever reaps `pid`."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedKernel:
    """A kernel that was forked: a child of the agent, its ports bound. `timing_ms` counts from the request."""

    pid: int
    ports: dict[str, int]
    timing_ms: dict[str, float]


async def read_report(
    report: int,
    *,
    started: float,
    timing_ms: dict[str, float],
    deadline_s: float,
    on_pid: Callable[[int], object],
) -> ForkedKernel | None:
    """What a kernel says on `report`; None if no process came to be. Who gives up ends the kernel.

    `started` as from `time.perf_counter`. Raises `KernelDiedEarly`, or `TimeoutError` after `deadline_s`.
    """
    said: dict[str, Any] = {}
    os.set_blocking(report, False)
    until = time.perf_counter() + deadline_s
    rest = b""
    try:
        while "ports" not in said:
            chunk = await asyncio.wait_for(_readable(report), until - time.perf_counter())
            if not chunk and "pid" in said:
                raise KernelDiedEarly(said["pid"])
            if not chunk:
                return None
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                said.update(message)
                timing_ms.update({name: (time.perf_counter() - started) * 1e3 for name in message})
                if "pid" in message:
                    on_pid(message["pid"])
    except (asyncio.TimeoutError, asyncio.CancelledError) as problem:
        if "pid" in said:  # if not, it ends itself when it finds nobody to report to
            with contextlib.suppress(ProcessLookupError):
                os.killpg(said["pid"], signal.SIGKILL)
        if isinstance(problem, asyncio.CancelledError):
            raise
        raise TimeoutError(f"a forked kernel did not bind its ports in {deadline_s:g} s") from None
    return ForkedKernel(pid=said["pid"], ports=said["ports"], timing_ms=timing_ms)


async def _readable(fd: int) -> bytes:
    """The next bytes from a non-blocking pipe, b"" at its end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 4096)
