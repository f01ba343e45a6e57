"""A kernel with its manager, provisioner and client, as a notebook has them."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from roost.provisioners.kernel_object import await_answer
from roost.scheduler.client.client import Client
from roost.scheduler.errors import KernelDied
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import allow_s, until

SLEEP = "import time\nwhile True: time.sleep(0.1)"
"""Code that an interrupt ends. One long sleep would go on if the signal came just before it began."""

_PRINTED_S = 0.2
"""How long a kernel may take to return from a print that was shown. Some hang if they are interrupted in it."""


class Notebook:
    """A notebook's kernel: `open` starts it, `close` ends it. `options` go to `start_kernel`.

    `pid` is the kernel's process since the last `open` or `restart`.
    """

    def __init__(self, kernel_name: str = "python3", **options: Any) -> None:
        self.manager = AsyncKernelManager(kernel_name=kernel_name)
        self.options = options
        self.client: AsyncKernelClient
        self.pid = 0

    async def open(self) -> None:
        await self.manager.start_kernel(**self.options)
        self.client = self.manager.client()
        self.client.start_channels()
        try:
            await self._until_ready()
        except BaseException:
            await self.close()
            raise

    async def run(self, code: str, timeout_s: float = 180) -> dict[str, Any]:
        """Execute code and return the content of its execute_reply."""
        reply = await self.client.execute_interactive(
            code, timeout=allow_s(timeout_s), output_hook=lambda _: None
        )
        return dict(reply["content"])

    async def value(self, expression: str) -> str:
        """Return the repr of an expression in the kernel."""
        reply = await self.client.execute_interactive(
            "", user_expressions={"x": expression}, timeout=allow_s(30), output_hook=lambda _: None
        )
        return str(reply["content"]["user_expressions"]["x"]["data"]["text/plain"])

    async def interrupt(self, code: str = f"print('runs', flush=True)\n{SLEEP}") -> None:
        """Run a cell that prints a line and takes long, interrupt it after the line, and wait until it has ended."""
        cell = self.client.execute(code, stop_on_error=False)
        for kind in (
            "execute_input",
            "stream",
        ):  # the kernel announces the cell before the cell's first line runs
            await self._until_published(kind, cell)
        await asyncio.sleep(allow_s(_PRINTED_S))
        await self.manager.interrupt_kernel()
        reply = await self.client._async_recv_reply(cell, timeout=allow_s(30))
        assert reply["content"]["ename"] == "KeyboardInterrupt"

    async def _until_published(self, kind: str, request: str) -> None:
        """Wait for the next IOPub message of that kind which answers the request."""
        while True:
            message = await self.client.get_iopub_msg(timeout=allow_s(30))
            if (message["msg_type"], message["parent_header"].get("msg_id")) == (kind, request):
                return

    async def ended(self, service: Client, within_s: float) -> str:
        """Wait until the provisioner reports the kernel's end; return the service's reason for it."""
        ending = asyncio.ensure_future(self.manager.provisioner.wait())  # type: ignore[union-attr]

        async def read_reason() -> str:
            if not ending.done():
                return ""
            await ending
            kernel = await service.kernel(self.manager.kernel_id)
            return kernel.reason if kernel.state == "exited" else ""

        try:
            return await until(read_reason, "the service gives a reason for the kernel's end", within_s)
        finally:
            ending.cancel()

    async def restart(self) -> None:
        await self.manager.restart_kernel()
        await self._until_ready()

    async def _until_ready(self) -> None:
        """Wait for the kernel's first answer. Raise `KernelDied` if it ends, TimeoutError after 60 s."""
        answering = asyncio.ensure_future(await_answer(self.client))
        ending = asyncio.ensure_future(self.manager.provisioner.wait())  # type: ignore[union-attr]
        try:
            await asyncio.wait([answering, ending], timeout=allow_s(60), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise (
                    KernelDied("The kernel ended before it answered.")
                    if ending.done()
                    else asyncio.TimeoutError
                )
        finally:
            answering.cancel()
            ending.cancel()
        self.pid = (await self.manager.provisioner.get_provisioner_info())["pid"]  # type: ignore[union-attr]

    async def close(self) -> None:
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)


def held_by(kernel: Kernel) -> tuple[str, str, tuple[str, ...]]:
    """Return the lease id, the node and the devices of a kernel, which stay the same until its end."""
    return kernel.lease_id, kernel.node_id, kernel.device_ids
