"""Find the agent of this user on this machine, or start it. Replace it if it is older and of the same protocol.

A cluster manager runs this file as a program on a node, with the arguments FOLDER SETTINGS MANAGER CLIENTS (all but the
agent's folder are JSON). CLIENTS are public keys: the agent then accepts these clients. The program prints, as JSON,
the endpoint of the agent, its public key and the GPUs that it has. No secret leaves the node.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import DaemonError, ensure
from roost.launchers.daemon.private_files import FolderError, read_json, runtime_dir
from roost.launchers.daemon.process import is_running
from roost.launchers.daemon.world import name_in_world
from roost.launchers.machine_book.lock import find_pids
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import PROTOCOL, Manager
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, RpcError
from roost.launchers.protocol.shared_values import VERSION, is_older
from roost.placement.model import Node
from roost.placement.model.json_codec import WireError, decode, encode

log = logging.getLogger(__name__)

_START_DEADLINE_S = 20.0
_REPLACED_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Announcement:
    """The announcement of an agent of any version."""

    endpoint: str
    keys: ClientKeys
    version: str
    protocol: int
    pid: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What the record of a kernel says to an agent of any version."""

    kernel_id: str
    pid: int
    process_started_at: float


async def find_or_start_agent(
    settings: AgentSettings, *, name: str = "", manager: Manager | None = None
) -> tuple[str, ClientKeys]:
    """Return endpoint and keys of the agent with this name. Start it if it is not running. Raises `DaemonError`.

    Without a name, it is the agent of this process's world. A node of a cluster has one agent for each cluster, in the
    world of the cluster manager's daemon.

    The agent watches `manager` from now on. An agent of an older version is replaced; its kernels and leases stay. An
    agent of another protocol is left alone, and the error names its kernels. An agent with other settings is replaced
    if it holds no lease. Otherwise it keeps its settings, with a warning.
    """
    folder = runtime_dir() / (name or name_in_world("agent"))
    give_up_at = time.monotonic() + _REPLACED_WITHIN_S
    while time.monotonic() < give_up_at:
        program = [sys.executable, "-m", "roost.launchers.agent.main"]
        command = [*program, str(folder), json.dumps(encode(settings))]
        announced = await asyncio.to_thread(ensure, folder, command, deadline_s=_START_DEADLINE_S)
        try:
            found = decode(_Announcement, announced, ignore_unknown=True)
        except WireError as problem:
            pid = next(find_pids(folder / "lock"), 0)
            remedy = f"end that agent with `kill {pid}`" if pid > 0 else "stop that agent"
            raise DaemonError(f"{folder / 'ready.json'} is damaged: {problem}; {remedy}") from None
        if found.protocol != PROTOCOL:
            raise DaemonError(describe_other_protocol(folder, found.version, found.pid))
        endpoint, keys = found.endpoint, found.keys
        is_replaced = is_older(found.version)
        differences = find_differences(found.settings, settings)
        client = AgentClient(endpoint, keys)
        try:
            await client.connect()
            if differences and await _holds_something(client):
                text = "the agent on this machine keeps the settings it was started with until its kernels end: %s"
                log.warning(text, differences)
                settings = decode(AgentSettings, {**encode(settings), **differences})
                differences = {}
            if not is_replaced and not differences:
                if manager is not None:
                    await client.manage(manager)
                return endpoint, keys
            await client.leave()
        except RemoteError as refusal:
            raise DaemonError(refusal.message) from None
        except (RpcError, WireError, asyncio.TimeoutError) as problem:
            log.debug("the agent at %s has left or is leaving: %s", endpoint, problem)
        finally:
            await client.close()
        await asyncio.sleep(0.05)  # it is leaving; `ensure` starts the next agent once the lock is free
    raise DaemonError("an agent of an older version does not leave; run `roost doctor`")


def describe_other_protocol(folder: Path, version: str, pid: int) -> str:
    """Return a sentence about an agent of another protocol. It names the agent's kernels, and says how to end them."""
    kernels = {record.kernel_id: record.pid for record in _find_running(folder)}
    what = f"it and its kernels {', '.join(kernels)}" if kernels else "it: it has no kernel"
    command = " ".join(map(str, ("kill", pid, *kernels.values())))
    does_not_fit = (
        f"the agent on this machine is roost {version}, whose protocol is not that of roost {VERSION}"
    )
    return f"{does_not_fit}; `{command}` there ends {what}"


def _find_running(folder: Path) -> Iterator[_Record]:
    for path in sorted(folder.glob("kernels/*/record.json")):
        try:
            record = decode(_Record, read_json(path), ignore_unknown=True)
        except WireError:
            continue
        if is_running(record.pid, record.process_started_at):
            yield record


def find_differences(announced: Mapping[str, Any], settings: AgentSettings) -> dict[str, Any]:
    """Return a running agent's settings that differ from `settings`. Settings that `settings` lacks do not count."""
    mine = encode(settings)
    return {key: value for key, value in announced.items() if key in mine and mine[key] != value}


async def find_for_clients(
    settings: AgentSettings, clients: Sequence[str], *, name: str, manager: Manager | None = None
) -> tuple[str, str, Node]:
    """Find or start an agent that accepts these clients, which are public keys. Raises `DaemonError`.

    Return the agent's endpoint, its public key and its node.
    """
    endpoint, keys = await find_or_start_agent(settings, name=name, manager=manager)
    client = AgentClient(endpoint, keys)
    try:
        await client.connect()
        for admitted in clients:
            await client.admit(admitted)
        return endpoint, keys.server, await client.status()
    except (RpcError, asyncio.TimeoutError) as problem:
        raise DaemonError(f"the agent at {endpoint} has left again: {problem}") from None
    finally:
        await client.close()


async def _main(name: str, settings: str, manager: str, clients: str) -> str:
    wanted, watched = decode(AgentSettings, json.loads(settings)), decode(Manager, json.loads(manager))
    endpoint, public, node = await find_for_clients(wanted, json.loads(clients), name=name, manager=watched)
    return json.dumps({"endpoint": endpoint, "public": public, "devices": encode(node.devices)})


async def _holds_something(client: AgentClient) -> bool:
    return bool((await client.holdings()).leases)


if __name__ == "__main__":
    try:
        print(asyncio.run(_main(*sys.argv[1:])))
    except (DaemonError, FolderError) as problem:
        print(json.dumps({"problem": str(problem)}))
