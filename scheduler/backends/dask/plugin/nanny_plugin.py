"""roost in the nannies of a Dask cluster: they bring the agent of their machine up; see `dask_plugin`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from distributed import Scheduler
from distributed.comm import get_address_host
from distributed.diagnostics.plugin import NannyPlugin

from roost.scheduler.backends.agent_per_node.bootstrap import Answer, bring_up, name_agent, noted

from .scheduler_plugin import NAME

_GONE_S = 1.0
"""A scheduler that has not said who it is by then is gone."""


class OnNanny(NannyPlugin):  # type: ignore[misc,unused-ignore]
    """Brings the machine's agent up. It is this nanny's neighbour, not its child: it outlives all workers."""

    name = NAME
    idempotent = True
    restart = False

    def __init__(self, starter: AgentStarter) -> None:
        self._starter = starter

    async def setup(self, nanny: Any) -> None:
        async def bring() -> Answer:
            return await self._starter.bring_up(nanny)

        async def noted(lease_ids: list[str]) -> list[str]:
            return self._starter.noted(nanny, lease_ids)

        nanny.handlers.update(roost_bring_up=bring, roost_noted=noted)
        self._coming = asyncio.get_running_loop().create_task(self._starter.come(nanny))

    async def teardown(self, nanny: Any) -> None:
        await self._starter.end(nanny)


class AgentStarter:
    """How an agent is brought up, by a nanny or by a worker that has none (`server`)."""

    def __init__(
        self, *, archive: bytes, digest: str, settings: Mapping[str, Any], grace_s: float, python: str
    ) -> None:
        self._node_side = (archive, digest)
        self._settings = dict(settings)
        self._grace_s = grace_s
        self._python = python
        self._cluster = ""

    async def come(self, server: Any) -> None:
        """Bring it up, and say so to Dask's scheduler."""
        self._cluster = await _scheduler_id(server)
        answer = await self.bring_up(server)
        try:
            await server.scheduler.roost_agent_up(
                machine=get_address_host(server.address), server=server.address, answer=answer
            )
        except OSError:
            pass  # roost's scheduler asks for it

    async def end(self, server: Any) -> None:
        """The server ends. If that is because its scheduler is gone, kernels stay, though another may be there now."""
        if await _scheduler_id(server) != self._cluster:
            await self.bring_up(server, is_gone=True)
        elif Scheduler._instances and not _neighbours(server):
            await self.bring_up(server, has_left=True)  # a LocalCluster was scaled down: its process stays

    def noted(self, server: Any, lease_ids: list[str]) -> list[str]:
        """Those of the leases on its machine that the agent has noted."""
        name = name_agent("dask", server.scheduler.address, get_address_host(server.address))
        return noted(name, lease_ids, os.environ)

    async def bring_up(self, server: Any, *, is_gone: bool = False, has_left: bool = False) -> Answer:
        """Its address and keys, and what kernels find in their `environment`."""
        machine, cluster = get_address_host(server.address), server.scheduler.address
        settings = {**self._settings, "address": socket.gethostbyname(machine)}
        manager = {
            "name": "Dask",
            "pid": os.getpid(),
            "address": cluster.rpartition("://")[2],
            "grace_s": self._grace_s,
            "is_gone": is_gone,
            "has_left": has_left,
        }
        try:
            answer = await asyncio.to_thread(
                bring_up,
                *self._node_side,
                name_agent("dask", cluster, machine),
                json.dumps(settings),
                manager,
                self._python,
                dict(os.environ),
            )
        except OSError as problem:
            return {"problem": str(problem)}
        return {**answer, "environment": _environment(server.security, cluster)}


async def _scheduler_id(server: Any) -> str:
    """Which Dask scheduler answers now; empty if none does."""
    try:
        return str((await asyncio.wait_for(server.scheduler.identity(), _GONE_S))["id"])
    except (OSError, asyncio.TimeoutError):
        return ""


def _neighbours(server: Any) -> list[Any]:
    """Others of its kind in this process that are on the same machine, and stay."""
    machine = get_address_host(server.address)
    others = [other for other in type(server)._instances if other is not server]
    return [
        one for one in others if one.status.name == "running" and get_address_host(one.address) == machine
    ]


def _environment(security: Any, cluster: str) -> dict[str, str]:
    """With this `Client()` finds the cluster; the files are those of the worker, as they are on this machine."""
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
