"""The report of a forked kernel: through a pipe, it sends the agent its pid and then its ports."""

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
    """A kernel ended before its ports were bound. The argument is its pid, if it was forked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedKernel:
    """A forked kernel with bound ports. It is a child of the agent. `timing_ms` counts from the request."""

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
    """Read the pipe `report` until the kernel has sent its ports. Return None if the zygote forked no process.

    Raises `KernelDiedEarly`, or `TimeoutError` after `deadline_s`. A timeout or a cancellation kills the kernel.
    """
    received: dict[str, Any] = {}
    os.set_blocking(report, False)
    until = time.perf_counter() + deadline_s
    rest = b""
    try:
        while "ports" not in received:
            chunk = await _read_when_ready(report, until - time.perf_counter())
            if not chunk and "pid" not in received:
                return None
            if not chunk:
                raise KernelDiedEarly(received["pid"])
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                received.update(message)
                timing_ms.update({name: (time.perf_counter() - started) * 1e3 for name in message})
                if "pid" in message:
                    on_pid(message["pid"])
    except (TimeoutError, asyncio.CancelledError):
        if "pid" in received:  # otherwise the kernel ends when it writes to the closed pipe
            with contextlib.suppress(ProcessLookupError):
                os.killpg(received["pid"], signal.SIGKILL)
        raise
    return ForkedKernel(pid=received["pid"], ports=received["ports"], timing_ms=timing_ms)


async def _read_when_ready(fd: int, timeout_s: float) -> bytes:
    """Return the next bytes from a non-blocking pipe, or b"" at its end. Raises `TimeoutError`."""
    # `asyncio.wait_for` loses a cancellation on Python <= 3.11 if bytes arrive at the same time.
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(True))
    timer = loop.call_later(timeout_s, lambda: None if ready.done() else ready.set_result(False))
    try:
        if not await ready:
            raise TimeoutError("a forked kernel did not bind its ports in time")
    finally:
        loop.remove_reader(fd)
        timer.cancel()
    return os.read(fd, 4096)
