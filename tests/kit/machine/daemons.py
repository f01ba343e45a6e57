"""Functions that find and end the services and the agent of a runtime folder."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path

from roost.launchers.daemon.daemon import is_alive
from roost.launchers.daemon.private_files import read_json
from roost.launchers.daemon.world import name_in_world
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement.model.json_codec import decode
from roost.testing.deadlines import allow_s


def agent_folder(runtime_dir: Path) -> Path:
    """Return the folder of the agent for this machine, in the world of the test."""
    return runtime_dir / name_in_world("agent")


def daemon_pids(runtime_dir: Path, prefix: str) -> list[int]:
    """Return the pids of the living daemons in folders that start with `prefix` (`agent`, `scheduler`)."""
    found = []
    for folder in runtime_dir.glob(f"{prefix}*"):
        announced = read_json(folder / "ready.json")
        # The successor of a killed daemon holds the folder before it replaces the announcement.
        if announced is not None and is_alive(folder) and not wait_gone(int(announced["pid"]), 0):
            found.append(int(announced["pid"]))
    return found


def wait_gone(pid: int, timeout_s: float = 180) -> bool:
    """True if the process ends in time. A zombie has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], allow_s(timeout_s))[0])
    finally:
        os.close(descriptor)


def kill(pid: int) -> None:
    """Send SIGKILL and wait until the process is gone. It may have ended before."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    assert wait_gone(pid)


def settle(runtime_dir: Path) -> None:
    """End the services, then release the leases of the agents and end the agents, in every world."""
    for pid in daemon_pids(runtime_dir, "scheduler"):
        os.kill(pid, signal.SIGTERM)
        assert wait_gone(pid), f"scheduler service {pid} does not end"
    for folder in runtime_dir.glob("agent*"):
        for pid in daemon_pids(runtime_dir, folder.name):
            asyncio.run(_empty_agent(folder))
            assert wait_gone(pid), f"agent {pid} does not end"


async def _empty_agent(folder: Path) -> None:
    announced = read_json(folder / "ready.json")
    client = AgentClient(announced["endpoint"], decode(ClientKeys, announced["keys"]))
    await client.connect(timeout_s=allow_s(30))
    try:
        for lease in (await client.holdings()).leases:
            await client.release(lease.id)
        await client.leave()
    finally:
        await client.close()
