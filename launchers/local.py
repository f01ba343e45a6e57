"""The agent of this user on this machine: found, or started; replaced when it is older than this code."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from .client import AgentClient
from .daemon import DaemonError, ensure, runtime_dir
from .messages import PROTOCOL
from .node import AgentSettings
from .rpc import ClientKeys, RpcError
from .version import VERSION, as_numbers
from .wire import decode, encode

_START_DEADLINE_S = 20.0
_REPLACE_TRIES = 20


async def local_agent(settings: AgentSettings) -> tuple[str, ClientKeys]:
    """Endpoint and keys of the local agent; raises `DaemonError` with one sentence.

    An agent that was started with other settings is replaced when it holds nothing, and refused otherwise.
    """
    folder = runtime_dir() / "agent"
    command = [sys.executable, "-m", "roost.launchers.agent", str(folder), json.dumps(encode(settings))]
    for _ in range(_REPLACE_TRIES):
        announced = await asyncio.to_thread(ensure, folder, command, deadline_s=_START_DEADLINE_S)
        keys = decode(ClientKeys, announced["keys"])
        if not await _must_leave(announced, keys, settings):
            return str(announced["endpoint"]), keys
        await asyncio.sleep(0.05)  # it is on its way out; `ensure` starts the next once its lock is free
    raise DaemonError("the agent of an older version does not leave; run `roost doctor`")


async def _must_leave(announced: dict[str, Any], keys: ClientKeys, settings: AgentSettings) -> bool:
    """Whether that agent is on its way out: by itself, or asked to make room for this version and settings."""
    is_older = as_numbers(str(announced["version"])) < as_numbers(VERSION)
    if not is_older and announced["protocol"] != PROTOCOL:
        raise DaemonError(
            f"the agent here is of version {announced['version']}, newer than this one: upgrade roost"
        )
    is_other = announced["settings"] != encode(settings)
    client = AgentClient(str(announced["endpoint"]), keys)
    try:
        await client.connect()
        if not is_older and not is_other:
            return False
        held = len((await client.holdings()).reservations)
        if is_other and held:
            raise DaemonError(
                f"the agent on this machine was started with other settings ({announced['settings']}) and holds "
                f"{held} kernels; stop them, or use its settings"
            )
        await client.leave()
    except (RpcError, asyncio.TimeoutError):
        pass  # it is gone, or about to be
    finally:
        await client.close()
    return True
