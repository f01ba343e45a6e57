"""Dask as a cluster manager. A lease is an amount subtracted from a worker's resources.

roost's plugin in Dask's scheduler grants or refuses each lease. The plugin reports each change of the nodes
at once, so roost need not poll them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from roost.launchers.protocol.messages import Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent, decode_agent, shorten_error
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.backends.base import Backend, BackendContext, Lease
from roost.scheduler.backends.key_pair import KeyPair, load_service_key_pair
from roost.scheduler.errors import BackendUnavailable, LeaseConflict
from roost.scheduler.messages import Finding

from . import SPEC, join, nodes
from .install import install_plugins
from .nodes import DaskNode
from .settings import RoostDaskBackend

_CALL_S = 8.0
_LOOK_S = 2.0
"""How long one call waits for a change of the nodes.

The call fails if no answer comes `_CALL_S` after that.
"""
_FIRST_AGENTS_S = 5.0
"""How long the first agents of a cluster may take to report the models of its GPUs; they need 1 to 2 s."""
_START_AGENT_S = 45.0
_CLAIM_S = 15.0
_WAIT_S = 0.3
"""How long a claim waits for Dask's tasks to end, before it is refused and the queue tries again."""


def create(settings: RoostDaskBackend, context: BackendContext) -> Backend:
    """Return the Dask backend. `BackendSpec.create` names this function."""
    manager = DaskManager(settings, load_service_key_pair(context.folder))
    return AgentPerNodeBackend(
        SPEC.name, manager, settings.agent_settings(), context, grace_s=settings.manager_grace_s
    )


class DaskManager:
    """A `ClusterManager` for one Dask cluster.

    The settings name the cluster, else Dask's configuration names it. If both are empty, it is the cluster that was
    joined last.
    """

    name = "Dask"
    daemon = "last nanny"
    claim_name = "lease in Dask's scheduler"
    other_holders = "Dask tasks that roost did not start"
    holds_claims = True

    def __init__(self, settings: RoostDaskBackend, key_pair: KeyPair) -> None:
        self._settings = settings
        self._key_pair = key_pair
        self._client: Any = None
        self._version = -1
        self._incarnation = ""
        self._metrics: Mapping[str, Mapping[str, float]] = {}  # by node: cpus, memory_bytes
        self.membership: Membership[DaskNode] = Membership(self.name, join=self._join, fetch=self._fetch)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await join.leave(client)

    async def wait_until_described(self) -> None:
        """Wait until each machine with GPUs has a report about its agent: Dask itself knows no GPU models.

        Before that, a kernel that asks for a model would be refused for good.
        """

        async def see_all() -> None:
            while any(node.devices and not node.agent for node in self.membership.nodes.values()):
                await self._see(_FIRST_AGENTS_S)
                await self.membership.read()

        with contextlib.suppress(BackendUnavailable, asyncio.TimeoutError):  # the next caller gets the error
            await asyncio.wait_for(see_all(), _FIRST_AGENTS_S)

    async def wait_for_change(self) -> None:
        with contextlib.suppress(BackendUnavailable):  # the next reading raises it
            await self._see(_LOOK_S)

    async def read_metrics(self) -> Collection[str]:
        self._metrics = await self.ask("roost_metrics")
        return self._metrics

    def build_node(self, node: DaskNode, status: Node | None) -> Node:
        return nodes.build_node(node, status, self._metrics.get(node.id))

    async def environment(self, lease: Lease, address: str) -> Mapping[str, str]:
        node = self.membership.nodes.get(lease.node_id)
        reported = node.agent.get("environment", {}) if node is not None else {}
        return {"DASK_SCHEDULER_ADDRESS": address, **reported}

    async def claim(
        self, lease: Lease, node: DaskNode, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        request = lease.request
        held = {
            "lease_id": lease.id,
            "kernel_id": lease.kernel_id,
            "user": lease.owner.user,
            "machine": lease.node_id,
            "cpus": request.cpus,
            "memory_bytes": request.memory_bytes,
            "gpus": request.gpus,
            "resources": dict(request.resources),
        }
        asked = {"held": held, "device_ids": list(lease.device_ids), "again": again, "wait_s": _WAIT_S}
        answer = await self.ask("roost_lease", _CLAIM_S, **asked)
        if "refused" in answer:
            raise LeaseConflict(answer["refused"])
        return tuple(answer["device_ids"])

    def can_take_on(self, node: DaskNode) -> bool:
        return True

    async def release(self, lease: Lease) -> None:
        await self.ask("roost_release", lease_id=lease.id)

    async def claims(self) -> Sequence[Lease]:
        return [_build_lease(held) for held in await self.ask("roost_leases")]

    def unclaimed(self, leases: Sequence[Lease], node: DaskNode) -> list[Lease]:
        return [lease for lease in leases if lease.id not in node.leases]

    async def start_agent(self, node_id: str) -> StartedAgent:
        answer = await self.ask("roost_agent", _START_AGENT_S, machine=node_id)
        return decode_agent(answer, node_id, str(answer.get("report", "")), self._key_pair)

    async def diagnose(self) -> list[Finding]:
        return []

    async def ask(self, operation: str, deadline_s: float = _CALL_S, /, **arguments: Any) -> Any:
        """Return what the plugin in Dask's scheduler answers; raise `BackendUnavailable` if it does not."""
        self.membership.check()
        if self._client is None:
            raise BackendUnavailable("roost has left Dask's scheduler")
        try:
            call = getattr(self._client.scheduler, operation)
            answer = await asyncio.wait_for(call(**arguments), deadline_s)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Dask's scheduler has not answered for {deadline_s:g} s") from None
        except OSError as error:
            raise BackendUnavailable("Dask's scheduler has gone") from error
        except Exception as error:
            raise BackendUnavailable(f"Dask's scheduler failed: {shorten_error(error)}") from error
        if answer is None:  # so Dask answers an operation that it does not know
            raise BackendUnavailable("Dask's scheduler has been started again, without roost's plugin")
        return answer

    async def _join(self, address: str) -> str:
        await self.close()
        self._client, joined = await join.join(self._settings, address)
        await install_plugins(self._client, self._settings, self._key_pair.public)
        self._version, self._incarnation = -1, ""
        return joined

    async def _fetch(self) -> Iterable[DaskNode]:
        return await self._see(0.0)

    async def _see(self, wait_s: float) -> Iterable[DaskNode]:
        """Return the nodes. With `wait_s`, wait for a change of them instead, and return none."""
        known = self._incarnation
        asked = {"since": self._version, "incarnation": known, "wait_s": wait_s}
        answer = await self.ask("roost_nodes", _CALL_S + wait_s, **asked)
        if wait_s:
            return ()  # the caller reads them then
        found = dict(self.membership.nodes) if answer["incarnation"] == known else {}
        for name, machine in answer["machines"].items():
            found.pop(name, None)
            if machine is not None:
                found[name] = DaskNode.of(name, machine, self._key_pair)
        self._version, self._incarnation = answer["version"], answer["incarnation"]
        return found.values()


def _build_lease(held: Mapping[str, Any]) -> Lease:
    """Return the lease as far as the plugin in Dask's scheduler knows it."""
    return Lease(
        id=held["lease_id"],
        kernel_id=held["kernel_id"],
        owner=Owner(user=held["user"]),
        request=Request(
            cpus=held["cpus"],
            memory_bytes=held["memory_bytes"],
            gpus=held["gpus"],
            resources=dict(held["resources"]),
            owner=held["user"],
        ),
        node_id=held["machine"],
        device_ids=tuple(held["device_ids"]),
    )
