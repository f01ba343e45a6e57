"""One kernel through the real manager and provisioner, with a client: what a notebook is to roost."""

from __future__ import annotations

from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager


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
