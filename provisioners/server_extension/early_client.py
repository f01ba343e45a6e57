"""A client of a kernel whose start is pending: its `wait_for_ready` waits for the start.

Other extensions of the server make such clients, for example jupyter-server-nbmodel for the first cell.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

from roost.provisioners.jupyter_internals import open_socket, open_sockets_by
from roost.provisioners.kernel_connection import quick_sockets
from roost.scheduler.errors import LaunchError


def let_wait(client: Any, km: Any) -> Any:
    """Let a client wait for the start of the kernel of `km`, and then connect. Return the client.

    Until then, its channels and a client without a `wait_for_ready` for event loops raise `LaunchError`.
    """

    def open_channel(*arguments: Any, **options: Any) -> Any:
        if not _is_ready(km):
            raise LaunchError(f"Kernel {km.kernel_id} has not started yet: wait for its `ready`.")
        client.load_connection_info(km.get_connection_info())
        with quick_sockets(client.context):
            return open_socket(client, *arguments, **options)

    async def wait_for_ready(timeout: float | None = None) -> None:
        began = time.monotonic()
        await asyncio.wait([km.ready], timeout=timeout)
        if not km.ready.done():
            raise RuntimeError(f"Kernel {km.kernel_id} did not start within {timeout:g} s")
        km.ready.result()
        rest_s = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
        await type(client).wait_for_ready(client, rest_s)

    if not isinstance(client, AsyncKernelClient):
        raise LaunchError(f"Kernel {km.kernel_id} has not started yet: wait for its `ready`.")
    open_sockets_by(client, open_channel)
    client.wait_for_ready = wait_for_ready  # type: ignore[method-assign]
    return client


def _is_ready(km: Any) -> bool:
    return km.ready.done() and not km.ready.cancelled() and km.ready.exception() is None
