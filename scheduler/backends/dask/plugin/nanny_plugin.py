"""roost's plugin in a Dask cluster's nannies. It starts the agent of their machine. See `scheduler_plugin`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.comm import get_address_host
from distributed.diagnostics.plugin import NannyPlugin

from roost.scheduler.backends.node_archive import Answer, bring_up, find_noted, name_agent

from .scheduler_plugin import NAME

_ANSWER_S = 1.0
"""How long Dask's scheduler may take to answer; after that it is regarded as gone."""


class RoostNannyPlugin(NannyPlugin):  # type: ignore[misc,unused-ignore]
    """A plugin that starts the machine's agent. The agent is not a child of the nanny, so it outlives all workers."""

    name = NAME
    idempotent = True
    restart = False

    def __init__(self, starter: AgentStarter) -> None:
        self._starter = starter

    async def setup(self, nanny: Any) -> None:
        self._starting = asyncio.get_running_loop().create_task(self._starter.start(nanny))

    async def teardown(self, nanny: Any) -> None:
        await self._starter.end(nanny)


@dataclass(kw_only=True)
class AgentStarter:
    """Starts the agent of a machine. Each `server` argument is a nanny, or a worker without one."""

    archive: bytes
    digest: str
    settings: Mapping[str, Any]
    grace_s: float
    python: str
    cluster: str = ""

    async def start(self, server: Any) -> None:
        """Let the server answer operations about the agent.

        Start the agent, and report it to Dask's scheduler.
        """

        async def bring_up_agent(clients: list[str]) -> Answer:
            return await self.bring_up(server, clients)

        async def find_noted_leases(lease_ids: list[str]) -> list[str]:
            name = name_agent("dask", server.scheduler.address, get_address_host(server.address))
            return find_noted(name, lease_ids, os.environ)

        server.roost_starter = self
        server.handlers.update(roost_bring_up=bring_up_agent, roost_noted=find_noted_leases)
        self.cluster = await _read_scheduler_id(server)
        answer = await self.bring_up(server, await _read_clients(server))
        machine = get_address_host(server.address)
        with contextlib.suppress(OSError):  # roost's scheduler asks for the agent itself
            await server.scheduler.roost_agent_up(machine=machine, server=server.address, answer=answer)

    async def end(self, server: Any) -> None:
        """Inform the agent if Dask's scheduler is gone, or if the machine has left a LocalCluster.

        If the scheduler is gone, the kernels stay, even if another scheduler has its address.
        """
        if self.cluster and await _read_scheduler_id(server) != self.cluster:
            await self.bring_up(server, [], is_gone=True)
        elif Scheduler._instances and not _find_neighbours(server):
            # A LocalCluster was scaled down, and its process stays.
            await self.bring_up(server, [], has_left=True)

    async def bring_up(
        self, server: Any, clients: Sequence[str], *, is_gone: bool = False, has_left: bool = False
    ) -> Answer:
        """Start or find the agent, which then accepts these clients.

        Return its `Answer`, with the `clients` that the agent accepts and variables for its kernels
        (`environment`).
        """
        machine, cluster = get_address_host(server.address), server.scheduler.address
        settings = {**self.settings, "address": socket.gethostbyname(machine)}
        manager = {
            "name": "Dask",
            "pid": os.getpid(),
            "address": cluster.rpartition("://")[2],
            "grace_s": self.grace_s,
            "is_gone": is_gone,
            "has_left": has_left,
        }
        try:
            answer = await asyncio.to_thread(
                bring_up,
                self.archive,
                self.digest,
                name_agent("dask", cluster, machine),
                json.dumps(settings),
                manager,
                clients,
                self.python,
                build_variables(getattr(server, "pre_spawn_env", {})),
            )
        except OSError as problem:
            return {"problem": str(problem)}
        latest: AgentStarter = getattr(server, "roost_starter", self)
        if latest is not self:
            # A plugin with other settings came meanwhile, and its call may have ended first.
            return await latest.bring_up(server, clients, is_gone=is_gone, has_left=has_left)
        if "endpoint" in answer:
            answer = {**answer, "clients": list(clients)}
        return {**answer, "environment": _build_environment(server.security, cluster)}


def build_variables(for_workers: Mapping[str, str], own: Path = Path("/proc/self/environ")) -> dict[str, str]:
    """Return the variables of this process without those that a nanny has set `for_workers`.

    Those are as they were when this process began (`own`).
    """
    entries = own.read_bytes().decode(errors="surrogateescape").split("\0")
    begun = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    env = {name: value for name, value in os.environ.items() if name != "__DASK_PARENT_PID"}
    return {name: value for name, value in env.items() if name not in for_workers} | {
        name: begun[name] for name in for_workers if name in begun
    }


async def _read_scheduler_id(server: Any) -> str:
    """Return the id of the Dask scheduler that answers now; empty if none does."""
    try:
        return str((await asyncio.wait_for(server.scheduler.identity(), _ANSWER_S))["id"])
    except (OSError, asyncio.TimeoutError):
        return ""


async def _read_clients(server: Any) -> list[str]:
    """Return the public keys of the services; none if Dask's scheduler does not answer."""
    try:
        return list(await asyncio.wait_for(server.scheduler.roost_clients(), _ANSWER_S))
    except (OSError, asyncio.TimeoutError):
        return []


def _find_neighbours(server: Any) -> list[Any]:
    """Return the other running servers in this process that have the class and the host address of this one."""
    machine = get_address_host(server.address)
    others = (one for one in type(server)._instances if one is not server and one.status.name == "running")
    return [other for other in others if get_address_host(other.address) == machine]


def _build_environment(security: Any, cluster: str) -> dict[str, str]:
    """Return the variables with which `Client()` finds the cluster. The TLS files are the worker's on this machine."""
    found = {"DASK_SCHEDULER_ADDRESS": cluster}
    if cluster.startswith("tls://"):
        tls = {
            "CA_FILE": security.tls_ca_file,
            "CLIENT__CERT": security.tls_worker_cert,
            "CLIENT__KEY": security.tls_worker_key,
        }
        found |= {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(value) for name, value in tls.items() if value}
        found["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "True"
    return found
