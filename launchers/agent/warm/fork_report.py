"""The report of a forked kernel: through a socket, it sends the agent its pid, and whether it serves its ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .kernel_command import NotForked

_PACKET_BYTES = 4096
_ENDS_S = 1.0
"""How long an unwanted kernel may take to end and free its ports."""


class KernelDiedEarly(Exception):
    """A kernel ended before it served its ports. The argument is its pid, if it was forked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedKernel:
    """A forked kernel, a child of the agent. `timing_ms` counts from the request.

    It serves its ports, or is a standby that has taken over its launch and serves them soon.
    """

    pid: int
    timing_ms: dict[str, float]


async def read_report(
    channel: socket.socket,
    *,
    started: float,
    timing_ms: dict[str, float],
    deadline_s: float,
    on_pid: Callable[[int], object],
) -> ForkedKernel:
    """Return a forked kernel once it reports that it serves its ports.

    A standby is returned once it has taken over the launch. `on_pid` gets the kernel's pid and records it; only then
    the kernel may go on. `timing_ms` gets the time of each report since `started`. Raises `NotForked` if the zygote
    forked no process, `KernelDiedEarly`, or `TimeoutError` after `deadline_s`. A timeout or a cancellation kills the
    kernel.
    """
    received: dict[str, Any] = {}
    until = time.perf_counter() + deadline_s
    try:
        while "ready" not in received and "standby" not in received:
            packet = await _receive(channel, until - time.perf_counter())
            if not packet and "pid" not in received:
                raise NotForked("its zygote forked no process")
            if not packet:
                raise KernelDiedEarly(received["pid"])
            message = json.loads(packet)
            received.update(message)
            timing_ms.update({name: (time.perf_counter() - started) * 1e3 for name in message})
            if "pid" in message:
                on_pid(message["pid"])
                with contextlib.suppress(OSError):  # the process has ended: the next packet is the end
                    channel.send(b"go")
    except (TimeoutError, asyncio.CancelledError):
        if "pid" in received:  # otherwise the kernel ends when it writes to the closed channel
            with contextlib.suppress(ProcessLookupError):
                os.killpg(received["pid"], signal.SIGKILL)
        raise
    return ForkedKernel(pid=received["pid"], timing_ms=timing_ms)


async def refuse(channel: socket.socket) -> None:
    """End a forked kernel that must not go on with its start, and wait until it has ended."""
    with contextlib.suppress(OSError, TimeoutError):
        channel.shutdown(socket.SHUT_WR)
        until = time.perf_counter() + _ENDS_S
        while await _receive(channel, until - time.perf_counter()):
            pass


async def _receive(channel: socket.socket, timeout_s: float) -> bytes:
    """Return the next packet, or b"" at the end. Raises `TimeoutError`."""
    # `asyncio.wait_for` loses a cancellation on Python <= 3.11 if a packet arrives at the same time.
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    loop.add_reader(channel, lambda: None if ready.done() else ready.set_result(True))
    timer = loop.call_later(timeout_s, lambda: None if ready.done() else ready.set_result(False))
    try:
        if not await ready:
            raise TimeoutError("a forked kernel did not serve its ports in time")
    finally:
        loop.remove_reader(channel)
        timer.cancel()
    with contextlib.suppress(ConnectionError):  # it has ended without having read all
        return channel.recv(_PACKET_BYTES)
    return b""
