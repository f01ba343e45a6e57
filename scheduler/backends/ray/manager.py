"""Ray as a cluster manager. A lease is a placement group, and Ray chooses its devices.

The service's process is a driver of the Ray cluster. Ray ends a driver a minute after Ray's head is gone. The next
service then serves the kernels that live while Ray is away.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.daemon.tasks import start_shared
from roost.launchers.protocol.json_codec import decode
from roost.launchers.protocol.messages import Owner
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Node, Request
from roost.scheduler.backends.agent_per_node.backend import build_backend
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.backends.base import AgentAddress, Backend, BackendContext, Lease
from roost.scheduler.errors import BackendUnavailable, LeaseConflict

from . import SPEC, agent_task, join, nodes, placement_groups
from .calls import RayCalls
from .nodes import RayNode
from .placement_groups import Group
from .settings import RoostRayBackend

_LOOK_S = 0.5
"""How long to wait between two readings of Ray's state (0.4 ms each): joins, deaths and lost leases show within 1 s."""
_JOIN_S = 45.0
_START_AGENT_S = 45.0
_PROBE_S = 30.0
_CONFIRM_S = 0.8
"""Ray reports freed resources up to 1 s late. Doubt a refusal for this long before raising `LeaseConflict`."""
_ASK_AGAIN_S = 0.1
"""How long to wait before asking again with a new group. Ray itself retries a waiting group only after 1 s."""


def create(settings: RoostRayBackend, context: BackendContext) -> Backend:
    """Return the backend of this manager, for the `BackendSpec`."""
    return build_backend(SPEC.name, RayManager(settings), settings, context)


class RayManager:
    """Implements `ClusterManager`. The cluster is the settings', else RAY_ADDRESS's, else the last one."""

    name = "Ray"
    daemon = "raylet"
    claim_name = "placement group"

    def __init__(self, settings: RoostRayBackend, calls: RayCalls | None = None) -> None:
        self._settings = settings
        self._calls = calls or RayCalls()
        self._address = ""
        self._group_ids: dict[str, str] = {}  # Ray's, by lease
        self._creating: dict[str, asyncio.Task[Group]] = {}  # by group name, while the lease is being claimed
        self._node_of: dict[str, str] = {}  # by group name, while the lease is being claimed
        self._anchors: dict[str, Any] = {}  # by raylet
        self.membership: Membership[RayNode] = Membership(self.name, join=self._join, fetch=self._fetch)

    async def close(self) -> None:
        self._calls.close()

    async def wait_until_described(self) -> None:
        """Return at once: one reading of Ray's state is complete."""

    async def wait_for_change(self) -> None:
        await asyncio.sleep(_LOOK_S)

    async def read_metrics(self) -> Collection[str]:
        return ()

    def build_node(
        self, node: RayNode, leases: Sequence[Lease], status: Node | None, metrics_age_s: float | None
    ) -> Node:
        return nodes.build_node(node, leases, status, metrics_age_s)

    def environment(self, lease: Lease, address: str) -> Mapping[str, str]:
        return {
            "RAY_ADDRESS": address,
            "RAY_NAMESPACE": lease.request.options.get("namespace") or placement_groups.NAMESPACE,
            "ROOST_PLACEMENT_GROUP": _name_group(lease),
        }

    async def claim(
        self, lease: Lease, node: RayNode, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        if again:
            return await self._claim_devices(lease, node)
        return await self._claim(lease, _name_group(lease), node, has_room)

    def can_take_on(self, node: RayNode) -> bool:
        return not node.is_held_up

    async def release(self, lease: Lease) -> None:
        name = _name_group(lease)
        if name in self._creating:  # a cancelled claim goes on in its thread, and would outlive the removal
            await asyncio.wait([self._creating[name]])
        await self._ask(placement_groups.remove, name)
        self._group_ids.pop(lease.id, None)

    async def claims(self) -> Sequence[Lease]:
        groups = await self._ask(placement_groups.read_groups)
        self._group_ids.update({group.lease_id: group.id for group in groups})
        by_daemon = {node.daemon: node.id for node in self.membership.nodes.values()}
        return [_build_lease(group, by_daemon.get(group.node, "")) for group in groups]

    def shows(self, lease: Lease, node: RayNode) -> bool:
        group_id = self._group_ids.get(lease.id)
        return node.groups is None or group_id is None or group_id in node.groups

    async def find(self, lease: Lease) -> bool:
        return await self._ask(placement_groups.find, _name_group(lease)) is not None

    async def start_agent(self, node_id: str) -> StartedAgent:
        away, node = self.membership.away, self.membership.nodes.get(node_id)
        if away or node is None:
            raise BackendUnavailable(f"there is no agent on {node_id}: {away or 'no such node in Ray'}")
        settings = AgentSettings(
            cpus=node.total.get("CPU", 0.0),
            memory_bytes=int(node.total.get("memory", 0)),
            idle_exit_s=self._settings.agent_idle_exit_s,
            preload=tuple(self._settings.preload),
            address=node.address,
            is_remote=True,
            gpu_visibility="manager",
        )
        reference = await self._ask(
            agent_task.start_on,
            node,
            settings,
            cluster_address=self._address,
            grace_s=self._settings.manager_grace_s,
            python=self._settings.python,
        )
        purpose = f"to start roost's agent on {node_id}"
        answer = await self._calls.answer(reference, _START_AGENT_S, purpose)
        if "problem" in answer:
            raise BackendUnavailable(f"no agent on {node_id}: {answer['problem']}")
        address = AgentAddress(endpoint=answer["endpoint"], keys=decode(ClientKeys, answer["keys"]))
        return StartedAgent(address=address, daemon=node.daemon)

    async def _join(self, known: str) -> str:
        address = self._settings.address or os.environ.get(SPEC.address_variable) or known
        join_ray = functools.partial(join.join, address, namespace=placement_groups.NAMESPACE)
        self._address = await self._calls.run(join_ray, deadline_s=_JOIN_S)
        return self._address

    async def _fetch(self) -> Iterable[RayNode]:
        found: tuple[RayNode, ...] = await self._ask(nodes.read, self.membership.nodes.values())
        for daemon in self._anchors.keys() - {node.daemon for node in found}:
            del self._anchors[daemon]
        return found

    async def _ask(self, question: Any, *arguments: Any, **named: Any) -> Any:
        self.membership.check()  # a call to Ray while its head is gone blocks a thread, or even aborts the process
        return await self._calls.ask(question, *arguments, **named)

    async def _claim_devices(self, lease: Lease, node: RayNode) -> tuple[str, ...]:
        """Claim exactly the devices of a live kernel.

        Ray grants the first free device. If that is another device, further groups hold such devices until one of them
        has ours. That group is then removed, and the lease's own group takes the device. If the service is killed
        meanwhile, `claims` shows the further groups as leases of an earlier start of the kernel, which are released.
        """
        names = (placement_groups.name_group(f"{lease.id}{n}", lease.owner.user) for n in _count_suffixes())
        name = next(names)
        await self._ask(placement_groups.remove, name)  # a group that waits for a raylet that is gone
        if await self._claim(lease, name, node) == lease.device_ids:
            return lease.device_ids
        await self._ask(placement_groups.remove, name)
        others: list[str] = []
        try:
            found: tuple[str, ...] = ()
            while found != lease.device_ids:
                others.append(next(names))
                found = await self._claim(lease, others[-1], node)
            await self._ask(placement_groups.remove, others[-1])
            found = await self._claim(lease, name, node)
            if found != lease.device_ids:
                await self._ask(placement_groups.remove, name)
                raise LeaseConflict(f"Ray gave it other devices ({', '.join(found)})")
            return found
        finally:
            for other in others:
                await self._ask(placement_groups.remove, other)

    async def _claim(
        self, lease: Lease, name: str, node: RayNode, has_room: HasRoom | None = None
    ) -> tuple[str, ...]:
        """Claim the slice with a group of that name.

        The creation goes on if the caller is cancelled; `release` waits for it.
        """
        self._node_of[name] = node.id
        creating = self._creating[name] = start_shared(self._create(name, lease.request, node, has_room))
        try:
            self._group_ids[lease.id] = (await asyncio.shield(creating)).id
            return await self._read_device_ids(name, lease.request, node)
        finally:
            creating.add_done_callback(lambda _: self._forget_creation(name))

    async def _create(self, name: str, request: Request, node: RayNode, has_room: HasRoom | None) -> Group:
        """Create the group. Doubt a refusal if Ray's own state has room; without `has_room`, doubt it in any case."""
        believe_at = time.monotonic() + _CONFIRM_S
        while True:
            try:
                group: Group = await self._ask(placement_groups.create, name, request, node)
                return group
            except LeaseConflict:
                await self.membership.read()
                is_full = has_room is not None and not has_room(node.id, request, self._count_ahead(name))
                if is_full or time.monotonic() > believe_at:
                    raise
            await asyncio.sleep(_ASK_AGAIN_S)

    def _count_ahead(self, name: str) -> int:
        """Return how many claims on the group's node come before it, and are not in the node table yet.

        These are claims that Ray has granted, and claims that were asked for earlier.
        """
        names = list(self._creating)
        earlier = names[: names.index(name)]
        return sum(
            _was_granted(creating) if creating.done() else other in earlier
            for other, creating in self._creating.items()
            if self._node_of[other] == self._node_of[name]
        )

    def _forget_creation(self, name: str) -> None:
        self._creating.pop(name, None)
        self._node_of.pop(name, None)

    async def _read_device_ids(self, name: str, request: Request, node: RayNode) -> tuple[str, ...]:
        if not request.gpus:
            return ()
        anchor = self._anchors.get(node.daemon)
        if anchor is None:
            anchor = self._anchors[node.daemon] = await self._ask(placement_groups.create_anchor, node)
        try:
            reference = await self._ask(placement_groups.read_device_ids, name, request.gpus, anchor)
            purpose = "to report which devices it has granted"
            return tuple(await self._calls.answer(reference, _PROBE_S, purpose))
        except BackendUnavailable:
            self._anchors.pop(node.daemon, None)  # a lost anchor may be the cause
            raise


def _name_group(lease: Lease) -> str:
    return placement_groups.name_group(lease.id, lease.owner.user)


def _count_suffixes() -> Iterator[str]:
    """Yield "", "~1", "~2" and so on."""
    return itertools.chain([""], (f"~{number}" for number in itertools.count(1)))


def _was_granted(creating: asyncio.Task[Group]) -> bool:
    return not creating.cancelled() and creating.exception() is None


def _build_lease(group: Group, node_id: str) -> Lease:
    """Return the lease as far as its group shows it. `node_id` is empty if no live raylet has the group's node."""
    is_held = group.is_created and bool(node_id)
    amounts = group.amounts
    return Lease(
        id=group.lease_id,
        kernel_id=group.kernel_id,
        owner=Owner(user=group.user),
        request=Request(
            cpus=amounts.get("CPU", 0.0),
            memory_bytes=int(amounts.get("memory", 0)),
            gpus=amounts.get("GPU", 0.0),
            resources={name: amounts[name] for name in nodes.find_custom_resources(amounts)},
            owner=group.user,
        ),
        node_id=node_id or group.address,
        state="held" if is_held else "lost",
        reason="" if is_held else f"its node {group.address} has left the Ray cluster",
    )
