"""Sends requests to a launcher: one JSON object in each connection to its `comm_port`.

A launcher takes one connection after the other, and closes each when it has read the request. It asks for no key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

_DEADLINE_S = 1.0
"""How long a launcher may take to read a request."""


async def interrupt(port: int, signum: int) -> bool:
    """Ask the launcher to signal its kernel. Return False if the launcher has not read the request in time."""
    return await _send(port, {"signum": signum})


async def end(port: int) -> bool:
    """Ask the launcher to stop its listener, so that its process can end. Return False as `interrupt`."""
    return await _send(port, {"shutdown": 1})


async def _send(port: int, request: dict[str, int]) -> bool:
    try:
        return await asyncio.wait_for(_exchange(port, json.dumps(request).encode()), _DEADLINE_S)
    except (OSError, TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        return False


async def _exchange(port: int, content: bytes) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(content)
        writer.write_eof()
        return await reader.read(1) == b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
