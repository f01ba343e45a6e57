"""One kernel through the real manager and provisioner, with a client: what a notebook is to roost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from roost.scheduler.client.client import Client
from roost.scheduler.service.messages import Kernel


class Notebook:
    """Start it with `open`, end it with `close`. `options` go to `start_kernel`."""

    def __init__(self, kernel_name: str = "python3", **options: Any) -> None:
        self.manager = AsyncKernelManager(kernel_name=kernel_name)
        self.options = options
        self.client: AsyncKernelClient

    async def open(self) -> None:
        await self.manager.start_kernel(**self.options)
        self.client = self.manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=60)

    async def run(self, code: str, timeout_s: float = 30) -> dict[str, Any]:
        """Content of the execute_reply."""
        reply = await self.client.execute_interactive(code, timeout=timeout_s, output_hook=lambda _: None)
        return dict(reply["content"])

    async def value(self, expression: str) -> str:
        """The repr of an expression in the kernel."""
        reply = await self.client.execute_interactive(
            "", user_expressions={"x": expression}, timeout=30, output_hook=lambda _: None
        )
        return str(reply["content"]["user_expressions"]["x"]["data"]["text/plain"])

    async def interrupt(self) -> None:
        """Interrupt a cell that sleeps."""
        self.client.execute("import time; time.sleep(60)", stop_on_error=False)
        await asyncio.sleep(0.2)
        await self.manager.interrupt_kernel()

    async def ended(self, service: Client, within_s: float) -> str:
        """Wait until the kernel's owner is told of its end; why it ended, as soon as the service says so."""
        deadline = time.monotonic() + within_s
        await asyncio.wait_for(self.manager.provisioner.wait(), within_s)  # type: ignore[union-attr]
        while True:
            kernel = await service.kernel(self.manager.kernel_id)
            if (kernel.state == "exited" and kernel.reason) or time.monotonic() > deadline:
                return kernel.reason
            await asyncio.sleep(0.05)

    async def restart(self) -> None:
        await self.manager.restart_kernel()
        await self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        """Of the kernel, as the provisioner knows it."""
        return int(self.manager.provisioner._pid)  # type: ignore[union-attr]

    async def close(self) -> None:
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)


def held_by(kernel: Kernel) -> tuple[str, str, tuple[str, ...]]:
    """What a kernel keeps for as long as it lives."""
    return kernel.lease_id, kernel.node_id, kernel.device_ids
