"""The scheduler services that run for this user, found without starting one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.daemon.private_files import runtime_dir
from roost.launchers.protocol import rpc
from roost.launchers.protocol.rpc_client import RpcClient
from roost.scheduler.errors import BackendUnavailable, from_remote

_CONNECT_S = 2.0
_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningService:
    """A service that runs. `address` is that of its cluster; empty on one machine."""

    folder: Path
    version: str
    pid: int
    backend: str
    address: str


def find_services() -> list[RunningService]:
    """Return the running services of this user, in the order of their folders."""
    found = []
    for folder in sorted(runtime_dir().glob("scheduler-*")):
        if report := read_announcement(folder):
            facts = {name: report.get(name, "") for name in ("version", "pid", "backend", "address")}
            found.append(RunningService(folder=folder, **facts))
    return found


async def ask_service(service: RunningService, operations: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Return the answers of a running service to these operations. Raises `RoostError`."""
    client = RpcClient(f"ipc://{service.folder}/socket")
    try:
        await client.connect(timeout_s=_CONNECT_S)
        return [await client.call(name, given, timeout_s=_ANSWER_S) for name, given in operations]
    except rpc.RemoteError as problem:
        raise from_remote(problem) from None
    except (rpc.RpcError, asyncio.TimeoutError):
        where = f"{service.backend}, pid {service.pid}, log {service.folder / 'log'}"
        raise BackendUnavailable(f"The scheduler service ({where}) does not answer.") from None
    finally:
        await client.close()
