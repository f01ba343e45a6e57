"""Sends variables of this process to the service, for a backend that needs those of the latest caller.

A service keeps the environment of its first caller. A connection to an ssh-agent, for example, ends with the session of
that caller. The values are secrets: they cross the service's private socket only, and nothing writes them down.
"""

from __future__ import annotations

import os

from roost.launchers.protocol.rpc_client import RpcClient
from roost.scheduler.backends.registry import get_spec

MOST_CALLER_CHARACTERS = 4_096
"""A longer value is sent as an empty one."""


def read_caller(backend: str) -> dict[str, str]:
    """Return the variables that the backend wants of each caller, empty if they are not set here.

    A value that cannot be shown is no name of a file or cache that anybody has chosen. It counts as not set.
    """
    found = {name: os.environ.get(name, "") for name in get_spec(backend).caller_variables}
    return {name: value if is_fit(value) else "" for name, value in found.items()}


def is_fit(value: str) -> bool:
    """True if the service accepts this value of a caller's variable."""
    return len(value) <= MOST_CALLER_CHARACTERS and value.isprintable()


async def send_caller(connection: RpcClient, backend: str, *, timeout_s: float) -> None:
    """Send this process's variables, if the backend wants any. Raises as `RpcClient.call`."""
    if variables := read_caller(backend):
        await connection.call("note_caller", {"variables": variables}, timeout_s=timeout_s)
