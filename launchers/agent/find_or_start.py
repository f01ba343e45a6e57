"""The agent of this user on this machine: found, or started; replaced when it is older than this code.

As a program, `python -m roost.launchers.agent.find_or_start NAME SETTINGS MANAGER` (JSON) does so for a cluster manager
on a node of the cluster. It prints where the agent listens, and which GPUs it sees.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from roost.launchers.daemon.daemon import DaemonError, ensure, runtime_dir
from roost.launchers.daemon.private_files import FolderError
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.json_codec import WireError, decode, encode
from roost.launchers.protocol.messages import PROTOCOL, Manager
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, RpcError
from roost.launchers.protocol.version import VERSION, parse_version

from .node_metrics import AgentSettings

log = logging.getLogger(__name__)

_START_DEADLINE_S = 20.0
_REPLACE_TRIES = 20


async def find_or_start_agent(
    settings: AgentSettings, *, name: str = "agent", manager: Manager | None = None
) -> tuple[str, ClientKeys]:
    """Endpoint and keys of the agent whose folder has this name, which watches that manager from now on.

    Raises `DaemonError` with one sentence.

    An agent of an older version is replaced; its kernels and reservations stay. One with other settings is replaced
    when it holds nothing. Until then its settings stand, with a warning: nobody is kept from their kernels by a
    changed configuration.
    """
    folder = runtime_dir() / name
    for _ in range(_REPLACE_TRIES):
        command = [
            sys.executable,
            "-m",
            "roost.launchers.agent.main",
            str(folder),
            json.dumps(encode(settings)),
        ]
        announced = await asyncio.to_thread(ensure, folder, command, deadline_s=_START_DEADLINE_S)
        endpoint, keys = (
            str(announced["endpoint"]),
            decode(ClientKeys, announced["keys"], ignore_unknown=True),
        )
        is_older = _is_older(announced)
        other = _other(announced["settings"], settings)
        client = AgentClient(endpoint, keys)
        try:
            await client.connect()
            if other and await _holds_something(client):
                log.warning(
                    "the agent on this machine keeps the settings it was started with until its kernels end: %s",
                    other,
                )
                settings = decode(AgentSettings, {**encode(settings), **other})
                other = {}
            if not is_older and not other:
                if manager is not None:
                    await client.manage(manager)
                return endpoint, keys
            await client.leave()
        except RemoteError as refusal:
            raise DaemonError(refusal.message) from None
        except (RpcError, WireError, asyncio.TimeoutError) as problem:
            log.debug("the agent at %s is gone, or about to be: %s", endpoint, problem)
        finally:
            await client.close()
        await asyncio.sleep(0.05)  # it is on its way out; `ensure` starts the next once its lock is free
    raise DaemonError("the agent of an older version does not leave; run `roost doctor`")


def _is_older(announced: Mapping[str, Any]) -> bool:
    """Whether that agent should make room for this version; raises `DaemonError` for one too new to talk to."""
    if parse_version(str(announced["version"])) < parse_version(VERSION):
        return True
    if announced["protocol"] != PROTOCOL:
        raise DaemonError(
            f"the agent here is of version {announced['version']}, newer than this one: upgrade roost"
        )
    return False


def _other(announced: Mapping[str, Any], settings: AgentSettings) -> dict[str, Any]:
    """What an agent was started with in another way than `settings`, of that which both versions know."""
    mine = encode(settings)
    return {key: value for key, value in announced.items() if key in mine and mine[key] != value}


async def _main(name: str, settings: str, manager: str) -> str:
    endpoint, keys = await find_or_start_agent(
        decode(AgentSettings, json.loads(settings)), name=name, manager=decode(Manager, json.loads(manager))
    )
    client = AgentClient(endpoint, keys)
    try:
        await client.connect()
        devices = (await client.status()).devices
    except (RpcError, asyncio.TimeoutError) as problem:
        raise DaemonError(f"the agent at {endpoint} has gone again: {problem}") from None
    finally:
        await client.close()
    return json.dumps({"endpoint": endpoint, "keys": encode(keys), "devices": encode(devices)})


async def _holds_something(client: AgentClient) -> bool:
    try:
        return bool((await client.holdings()).leases)
    except WireError:
        return True  # an older agent's, in a form that is not known any more


if __name__ == "__main__":
    try:
        print(asyncio.run(_main(*sys.argv[1:])))
    except (DaemonError, FolderError) as found:
        print(json.dumps({"problem": str(found)}))
