"""The agents that run for this user on this machine, found without starting one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.agent.find_or_start import describe_other_protocol
from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.daemon.private_files import is_own_folder, runtime_dir
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import PROTOCOL, Holdings
from roost.launchers.protocol.rpc import ClientKeys, RpcError
from roost.placement.model.json_codec import WireError, decode
from roost.scheduler.backends.node_archive import find_base
from roost.scheduler.errors import BackendUnavailable

_CONNECT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAgent:
    """An agent that runs, with the keys that it has announced to its own user."""

    folder: str
    pid: int
    endpoint: str
    keys: ClientKeys
    protocol: int
    version: str


def find_folders() -> list[Path]:
    """Return the folders in which this user's agents of this machine have theirs.

    A cluster manager's agent has its own in a folder that is the same on all nodes, whatever the login. Another user
    may have made a folder of that name in /tmp.
    """
    of_managers = Path(find_base(os.environ))
    is_own = is_own_folder(str(of_managers)) and not of_managers.is_symlink()
    return sorted({runtime_dir(), of_managers} if is_own else {runtime_dir()})


def find_agents() -> list[RunningAgent]:
    """Return the running agents of this user, in the order of their folders. One that is damaged is left out."""
    found = []
    for folder in (each for base in find_folders() for each in sorted(base.glob("agent*"))):
        announced = read_announcement(folder) or {}
        with suppress(WireError):
            found.append(decode(RunningAgent, {**announced, "folder": str(folder)}, ignore_unknown=True))
    return found


async def read_kernels(agent: RunningAgent) -> list[str]:
    """Return the ids of the live kernels of an agent. Raises `BackendUnavailable`."""
    async with _connected(agent) as client:
        return _list_live(await client.holdings())


async def end_kernels(agent: RunningAgent, grace_s: float) -> list[str]:
    """End all kernels of an agent, and have it give back their leases. Return the ids of those that were live.

    Raises `BackendUnavailable`.
    """
    async with _connected(agent) as client:
        held = await client.holdings()
        live = _list_live(held)
        # A kernel may end by itself meanwhile. What does not end is an error of the release.
        await asyncio.gather(*(client.stop(name, grace_s) for name in live), return_exceptions=True)
        await asyncio.gather(*(client.release(lease.id) for lease in held.leases))
        return live


def _list_live(held: Holdings) -> list[str]:
    return [kernel.kernel_id for kernel in held.kernels if kernel.is_running]


@asynccontextmanager
async def _connected(agent: RunningAgent) -> AsyncIterator[AgentClient]:
    if agent.protocol != PROTOCOL:
        raise BackendUnavailable(describe_other_protocol(Path(agent.folder), agent.version, agent.pid) + ".")
    client = AgentClient(agent.endpoint, agent.keys)
    try:
        await client.connect(timeout_s=_CONNECT_S)
        yield client
    except (RpcError, WireError, asyncio.TimeoutError) as problem:
        where = f"pid {agent.pid}, log {agent.folder}/log"
        cause = str(problem) or "it is slow"
        raise BackendUnavailable(f"The agent ({where}) does not answer: {cause}.") from None
    finally:
        await client.close()
