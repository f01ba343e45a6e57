"""The scheduler services that run for this user, found without starting one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.daemon.private_files import runtime_dir
from roost.launchers.protocol import rpc
from roost.launchers.protocol.rpc_client import RpcClient
from roost.launchers.protocol.shared_values import VERSION
from roost.scheduler.errors import BackendUnavailable, from_remote

from .service_folder import PROTOCOL

_CONNECT_S = 2.0
_ANSWER_S = 5.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningService:
    """A service that runs. `address` is the address of its cluster, empty if the cluster has none."""

    folder: Path
    pid: int
    backend: str
    address: str
    is_named: bool = False
    """True if an option or a variable has named the cluster."""


def find_services() -> list[RunningService]:
    """Return the running services of this user, in the order of their folders."""
    found = []
    for folder in sorted(runtime_dir().glob("scheduler-*")):
        report = read_announcement(folder)
        if report is None:
            continue
        facts = {name: report.get(name, "") for name in ("backend", "address")}
        if all(isinstance(fact, str) for fact in facts.values()):  # else another program has written it
            options = report.get("options")
            is_named = isinstance(options, dict) and "address" in options
            found.append(RunningService(folder=folder, pid=report["pid"], is_named=is_named, **facts))
    return found


async def read_kernels(
    call: Callable[[dict[str, Any]], Awaitable[Any]], *, with_use: bool
) -> tuple[list[Any], list[str]]:
    """Read all kernels page by page. Return them in the order of their starts, and the names of unreachable agents.

    `call` sends its argument to the service's operation `kernels` and returns the answer.
    """
    found: list[Any] = []
    unreachable: list[str] = []
    page: dict[str, Any] = {"more": True}
    while page["more"]:
        page = await call({"with_use": with_use, "after": found[-1]["id"] if found else ""})
        found += page["kernels"]
        unreachable += page["unreachable"]
    return sorted(found, key=lambda kernel: float(kernel.get("created_at", 0.0))), sorted(set(unreachable))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReading:
    """What a running service knows: JSON values, as the service sends them."""

    nodes: list[Any]
    node_types: list[Any]
    """The kinds of nodes that the cluster could start."""
    kernels: list[Any]


async def stop_kernels(
    service: RunningService, kernel_ids: Sequence[str], grace_s: float, *, and_all: bool = False
) -> None:
    """Stop these kernels of a service; with `and_all` also end its agents and itself. Raises `RoostError`."""
    async with _connected(service) as client:
        for kernel_id in kernel_ids:
            arguments = {"kernel_id": kernel_id, "grace_s": grace_s}
            await client.call("stop", arguments, timeout_s=grace_s + _STOP_S)
        if and_all:
            await client.call("end_all", timeout_s=_STOP_S)


async def list_kernels(service: RunningService) -> list[str]:
    """Return the ids of a service's kernels and starts, also while its cluster is away. Raises `RoostError`."""
    async with _connected(service) as client:
        found, _ = await read_kernels(partial(client.call, "kernels", timeout_s=_ANSWER_S), with_use=False)
        return [str(each["id"]) for each in found if each.get("state") != "exited"]


async def read_service(service: RunningService) -> ServiceReading:
    """Return the nodes of a running service, and its kernels with their use. Raises `RoostError`."""
    async with _connected(service) as client:
        nodes = (await client.call("nodes", timeout_s=_ANSWER_S))["nodes"]
        call = partial(client.call, "kernels", timeout_s=_ANSWER_S)
        kernels, _ = await read_kernels(call, with_use=True)
        node_types = (await client.call("node_types", timeout_s=_ANSWER_S))["node_types"]
        return ServiceReading(nodes=nodes, node_types=node_types, kernels=kernels)


@asynccontextmanager
async def _connected(service: RunningService) -> AsyncIterator[RpcClient]:
    """Connect with a service that speaks this protocol. What fails within is raised as a `RoostError`."""
    client = RpcClient(f"ipc://{service.folder}/socket")
    try:
        await client.connect(timeout_s=_CONNECT_S)
        hello = {"protocol": PROTOCOL, "version": VERSION}
        greeting = await client.call("hello", hello, timeout_s=_ANSWER_S)
        if greeting["protocol"] != PROTOCOL:
            what = (
                f"The scheduler service ({service.backend}, pid {service.pid}) is roost {greeting['version']}"
            )
            raise BackendUnavailable(f"{what}, whose protocol is not that of roost {VERSION}.")
        yield client
    except rpc.RemoteError as problem:
        raise from_remote(problem) from None
    except (rpc.RpcError, asyncio.TimeoutError):
        where = f"{service.backend}, pid {service.pid}, log {service.folder / 'log'}"
        raise BackendUnavailable(f"The scheduler service ({where}) does not answer.") from None
    finally:
        await client.close()
