"""A kernel as a notebook has it: with a client whose five channels stay open."""

from __future__ import annotations

import ast
import asyncio
import os
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

from .sides import Side
from .world import REPLY_TIMEOUT_S, elapsed_ms, execute, make_manager, reply_to, start

_PARTS = {
    "pss": ("Pss",),
    "uss": ("Private_Clean", "Private_Dirty"),
    "dirty": ("Private_Dirty",),
    "swap": ("SwapPss",),
}
_READ_MEMORY = "open('/proc/self/smaps_rollup').read()"
_COMPLETED = "import collections; collections.Or"
_BUSY = "print('busy', flush=True)\nimport time\nwhile True: time.sleep(0.1)"
_HEARTBEAT_MS = 1000
"""How long the thread of a heartbeat channel may take to begin."""
_SETTLE_S = 0.2
"""The pause before an interrupt. ipykernel 7.4 may hang if it is interrupted while a cell still prints."""
_LOOK_S = 2.0
"""How often to look whether a kernel that has not answered is still alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of one kernel in MiB. `pss` counts its part of each shared page, and `uss` counts no shared page."""

    pss: float
    uss: float
    dirty: float
    swap: float


class NoAnswer(Exception):
    """A kernel did not answer in time."""


class BenchKernel:
    """A kernel of one side of a comparison. `async with` starts and stops it."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.manager = make_manager(side.kernelspec, side.options)
        self._client: AsyncKernelClient | None = None

    async def __aenter__(self) -> BenchKernel:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def client(self) -> AsyncKernelClient:
        assert self._client is not None, "the kernel is not started"
        return self._client

    async def start(self, **variables: str) -> dict[str, float]:
        """Start the kernel with its channels. Return milliseconds until start_kernel() returned, and until a reply.

        `variables` are environment variables of the start, such as `KERNEL_GPUS`.
        """
        options = {"env": {**os.environ, **variables}} if variables else {}
        began = time.perf_counter()
        await start(self.manager, **options)
        returned_ms = elapsed_ms(began)
        self._connect()
        await self.execute("1+1")
        return {"start": elapsed_ms(began), "start_kernel returned": returned_ms}

    def _connect(self) -> None:
        self._client = self.manager.client()
        self.side.prepare(self._client)
        self._client.start_channels()

    async def stop_heartbeat(self) -> None:
        """Close the heartbeat channel. Its thread wakes each second, and a server with many kernels opens none.

        Jupyter Server keeps the other four channels open.
        """
        channel = self.client.hb_channel
        for _ in range(_HEARTBEAT_MS):
            if channel.is_beating():  # `stop` does not stop a thread that has not begun
                break
            await asyncio.sleep(0.001)
        channel.stop()

    async def restart(self) -> float:
        """Restart the kernel while the channels stay open. Return milliseconds until its first reply.

        New channels are opened if the kernel has new ports, as with Gateway Provisioners.
        """
        began = time.perf_counter()
        await self.manager.restart_kernel()
        if self.client.shell_port != self.manager.shell_port:
            self.client.stop_channels()
            self._connect()
        await self.execute("1+1")
        return elapsed_ms(began)

    async def interrupt(self) -> float:
        """Interrupt a cell that sleeps. Return milliseconds until its reply. Raises `NoAnswer`."""
        busy = self.client.execute(_BUSY)
        try:
            await asyncio.wait_for(self._wait_for_output(busy), REPLY_TIMEOUT_S)
            await asyncio.sleep(_SETTLE_S)
            began = time.perf_counter()
            await self.manager.interrupt_kernel()
            reply = await reply_to(self.client, busy)
        except asyncio.TimeoutError:
            raise NoAnswer(f"a kernel of {self.side.name} was not interrupted") from None
        if reply["status"] != "error":
            raise RuntimeError(f"the interrupted cell answered {reply['status']}")
        return elapsed_ms(began)

    async def _wait_for_output(self, request_id: str) -> None:
        while True:
            message = await self.client.get_iopub_msg()
            if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == request_id:
                return

    async def execute(self, code: str) -> float:
        """Run code. Return milliseconds until the reply. Raises `NoAnswer`, and `RuntimeError` if the code fails."""
        began = time.perf_counter()
        await self._hear(execute(self.client, code))
        return elapsed_ms(began)

    async def complete(self, code: str = _COMPLETED) -> float:
        """Complete the name at the end of `code`. Return milliseconds until the reply. Raises `NoAnswer`."""
        began = time.perf_counter()
        await self._hear(reply_to(self.client, self.client.complete(code)))
        return elapsed_ms(began)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the kernel, which must have a literal form. Raises `NoAnswer`."""
        content = await self._hear(execute(self.client, "None", user_expressions={"value": expression}))
        return ast.literal_eval(content["user_expressions"]["value"]["data"]["text/plain"])

    async def _hear(self, reply: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        hearing = asyncio.ensure_future(reply)
        try:
            while not hearing.done():
                await asyncio.wait([hearing], timeout=_LOOK_S)
                if not hearing.done() and not await self.manager.is_alive():
                    raise NoAnswer(f"a kernel of {self.side.name} has ended")
            return hearing.result()
        except asyncio.TimeoutError:
            raise NoAnswer(f"a kernel of {self.side.name} did not answer") from None
        finally:
            hearing.cancel()

    async def read_memory(self) -> Memory:
        """Return the kernel's memory. The kernel reads it itself, so that it may be on any machine with Linux."""
        return _read_rollup(await self.evaluate(_READ_MEMORY))

    async def stop(self, *, is_polite: bool = False) -> float:
        """Kill the kernel, or ask it to end. Return the milliseconds this took. May be repeated."""
        began = time.perf_counter()
        if self._client is not None:
            self._client.stop_channels()
            self._client = None
        if self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=not is_polite)
        self.manager.cleanup_connection_file()  # also of a start that was cancelled
        return elapsed_ms(began)


def _read_rollup(text: str) -> Memory:
    """Return the memory in the text of a file /proc/PID/smaps_rollup, see proc(5)."""
    kib = {
        words[0].rstrip(":"): int(words[1]) for line in text.splitlines() if len(words := line.split()) == 3
    }
    return Memory(**{name: sum(kib.get(part, 0) for part in parts) / 1024 for name, parts in _PARTS.items()})
