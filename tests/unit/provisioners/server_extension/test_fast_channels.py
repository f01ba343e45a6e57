"""The sockets between a server and its kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq
import zmq.asyncio
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager

from roost.provisioners.server_extension.fast_channels import connect_again_soon


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    """A context that several kernel managers share, as in a server."""
    with zmq.asyncio.Context() as context:
        yield context


async def test_only_the_sockets_of_one_kernel_connect_again_soon(context: zmq.asyncio.Context) -> None:
    eager, usual = [
        AsyncIOLoopKernelManager(context=context, shell_port=50_001, iopub_port=50_002) for _ in range(2)
    ]
    connect_again_soon(eager)
    with context.socket(zmq.DEALER) as socket:
        default = socket.reconnect_ivl, socket.reconnect_ivl_max
    for km, expected in ((eager, (5, 1_000)), (usual, default)):
        for stream in (km.connect_shell(), km.connect_iopub()):
            assert (stream.socket.reconnect_ivl, stream.socket.reconnect_ivl_max) == expected
            stream.close(linger=0)
