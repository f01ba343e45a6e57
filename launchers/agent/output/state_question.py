"""The question whether a kernel runs a cell that began before its agent did.

A kernel tells its state only when it changes. It answers a request on its shell channel once no cell runs.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import datetime, timezone

import zmq

from roost.launchers.agent.machine.ports import find_endpoint
from roost.launchers.protocol.messages import Connection
from roost.launchers.protocol.signature import Signer

from .subscription import connect


class StateQuestion:
    """A `kernel_info_request`, which the kernel answers after the cells that it runs or has queued."""

    def __init__(self, connection: Connection, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Send the question. Raises `ZMQError` or `ValueError` for an impossible connection."""
        header = {
            "msg_id": uuid.uuid4().hex, "msg_type": "kernel_info_request", "session": uuid.uuid4().hex,
            "username": "roost", "date": datetime.now(timezone.utc).isoformat(), "version": "5.3",
        }  # fmt: skip
        parts = [json.dumps(header).encode(), b"{}", b"{}", b"{}"]
        signature = Signer(connection.key.encode(), connection.signature_scheme).sign(parts)
        endpoint = find_endpoint(connection, connection.shell_port)
        keys = connection.curve_publickey, connection.curve_secretkey
        self._socket = connect(context.socket(zmq.DEALER), endpoint, *keys)
        self._socket.send_multipart([b"<IDS|MSG>", signature, *parts], zmq.NOBLOCK)

    async def answered(self) -> None:
        """Wait for the answer."""
        loop, file = asyncio.get_running_loop(), int(self._socket.getsockopt(zmq.FD))
        while not self._socket.poll(0):
            something = asyncio.Event()
            loop.add_reader(file, something.set)
            try:
                await something.wait()
            finally:
                loop.remove_reader(file)

    def close(self) -> None:
        self._socket.close(linger=0)
