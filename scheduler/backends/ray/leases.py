"""How a slice of a Ray node is claimed: its placement group, and which devices Ray has given to that."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from roost.launchers.protocol.messages import Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_node.claims import Claim, Claims
from roost.scheduler.backends.agent_per_node.driver import watched
from roost.scheduler.backends.base import Lease
from roost.scheduler.errors import BackendUnavailable, LeaseConflict

from . import nodes, placement_groups
from .driver import RayDriver
from .nodes import RayNode
from .placement_groups import Group

_PROBE_S = 30.0
_CONFIRM_S = 0.8
"""What was freed shows to Ray up to a second late: so long a refusal is doubted; then the queue asks again."""
_ASK_AGAIN_S = 0.1
"""A group that waits is tried again by Ray after a second only; a new one at once."""

HasRoom = Callable[[str, Request, int], bool]
"""Whether a request would fit on the node of that id, by all that is known, after so many of its kind."""


class RayClaims(Claims[RayNode]):
    """`hosts`: the nodes of which an agent is known. Where no raylet is, it may know more than Ray."""

    called = "placement group"

    def __init__(self, ray: RayDriver, has_room: HasRoom, hosts: Iterable[str]) -> None:
        self._ray = ray
        self._has_room = has_room
        self._hosts = hosts
        self._group_ids: dict[str, str] = {}  # Ray's, by lease
        self._asked: dict[str, asyncio.Task[Group]] = {}  # by name, while the lease is being taken
        self._node_of: dict[str, str] = {}  # by name, of those that are asked
        self._anchors: dict[str, Any] = {}  # by Ray's id of the node

    async def take(self, lease: Lease, node: RayNode) -> tuple[str, ...]:
        return await self._take(lease, _name(lease), node)

    def can_take_on(self, node: RayNode) -> bool:
        return not node.is_held_up

    async def settled(self, lease: Lease) -> None:
        if (name := _name(lease)) in self._asked:
            await asyncio.wait([self._asked[name]])

    async def give_back(self, lease: Lease) -> None:
        await self._ray.ask(placement_groups.remove, _name(lease))

    async def all(self) -> Collection[Claim]:
        groups = await self._ray.ask(placement_groups.groups)
        self._group_ids.update({group.lease_id: group.id for group in groups})
        by_ray_id = {node.ray_id: node.id for node in self._ray.nodes.values()}
        hosts = set(self._hosts)
        return [
            Claim(
                lease=_bare_lease(
                    group, by_ray_id.get(group.node, group.address if group.address in hosts else "")
                ),
                is_held=group.is_created and group.node in by_ray_id,
            )
            for group in groups
        ]

    def shows(self, lease: Lease, node: RayNode) -> bool:
        group_id = self._group_ids.get(lease.id)
        return node.groups is None or group_id is None or group_id in node.groups

    async def find(self, lease: Lease) -> bool:
        return await self._ray.ask(placement_groups.find, _name(lease)) is not None

    def forget(self, lease_id: str) -> None:
        self._group_ids.pop(lease_id, None)

    async def take_again(self, lease: Lease, node: RayNode) -> None:
        """Of the devices Ray gives the first that is free. Where that is another, more groups hold such as well, until
        one of them has ours: that is then given back and taken. (Should we end meanwhile, `leases` shows the others as
        of an earlier start of the kernel, which do not stay.)
        """
        names = (placement_groups.group_name(f"{lease.id}{n}", lease.owner.user) for n in _numbered())
        name = next(names)
        await self._ray.ask(placement_groups.remove, name)  # one that waits for a raylet that is gone
        if await self._take(lease, name, node, insists=True) == lease.device_ids:
            return
        await self._ray.ask(placement_groups.remove, name)
        others: list[str] = []
        try:
            found: tuple[str, ...] = ()
            while found != lease.device_ids:
                others.append(next(names))
                found = await self._take(lease, others[-1], node, insists=True)
            await self._ray.ask(placement_groups.remove, others[-1])
            found = await self._take(lease, name, node, insists=True)
            if found != lease.device_ids:
                await self._ray.ask(placement_groups.remove, name)
                raise LeaseConflict(f"Ray gave it other devices ({', '.join(found)})")
        finally:
            for other in others:
                await self._ray.ask(placement_groups.remove, other)

    def keep_anchors(self, ray_ids: set[str]) -> None:
        """Forget what belongs to other nodes than these."""
        for ray_id in self._anchors.keys() - ray_ids:
            del self._anchors[ray_id]

    async def _take(
        self, lease: Lease, name: str, node: RayNode, *, insists: bool = False
    ) -> tuple[str, ...]:
        """Claim it by a group of that name. Who `insists` doubts a refusal in any case, and not only where all that
        is known says that there is room.

        Ray's answer comes in any case: where nobody waits for it any more, `settled` does.
        """
        self._node_of[name] = node.id
        asked = self._asked[name] = watched(self._claim(name, lease.request, node, insists))
        try:
            self._group_ids[lease.id] = (await asyncio.shield(asked)).id
            return await self._device_ids(name, lease.request, node)
        finally:
            asked.add_done_callback(lambda _: self._forget(name))

    async def _claim(self, name: str, request: Request, node: RayNode, insists: bool) -> Group:
        """The placement group. A refusal is doubted while Ray's own state says that there is room."""
        believe_at = time.monotonic() + _CONFIRM_S
        while True:
            try:
                return await self._ray.ask(placement_groups.create, name, request, node)
            except LeaseConflict:
                await self._ray.read()
                is_full = not insists and not self._has_room(node.id, request, self._ahead_of(name))
                if is_full or time.monotonic() > believe_at:
                    raise
            await asyncio.sleep(_ASK_AGAIN_S)

    def _ahead_of(self, name: str) -> int:
        """How many on its node were granted theirs and are not in the picture yet, or were asked for before."""
        names = list(self._asked)
        before = names[: names.index(name)]
        return sum(
            _was_granted(asked) if asked.done() else other in before
            for other, asked in self._asked.items()
            if self._node_of[other] == self._node_of[name]
        )

    def _forget(self, name: str) -> None:
        self._asked.pop(name, None)
        self._node_of.pop(name, None)

    async def _device_ids(self, name: str, request: Request, node: RayNode) -> tuple[str, ...]:
        if not request.gpus:
            return ()
        anchor = self._anchors.get(node.ray_id)
        if anchor is None:
            anchor = self._anchors[node.ray_id] = await self._ray.ask(placement_groups.anchor, node)
        try:
            reference = await self._ray.ask(placement_groups.device_ids, name, request.gpus, anchor)
            return tuple(await self._ray.answer(reference, _PROBE_S, "to say which devices it has given"))
        except BackendUnavailable:
            self._anchors.pop(node.ray_id, None)  # it may have been for that
            raise


def _name(lease: Lease) -> str:
    return placement_groups.group_name(lease.id, lease.owner.user)


def _numbered() -> Iterator[str]:
    return itertools.chain([""], (f"~{number}" for number in itertools.count(1)))


def _was_granted(asked: asyncio.Task[Group]) -> bool:
    return not asked.cancelled() and asked.exception() is None


def _bare_lease(group: Group, node_id: str) -> Lease:
    """What a group alone says of a lease of which no agent has noted anything yet, or any more."""
    amounts = group.amounts
    return Lease(
        id=group.lease_id,
        kernel_id=group.kernel_id,
        node_id=node_id,
        device_ids=(),
        request=Request(
            cpus=amounts.get("CPU", 0.0),
            memory_bytes=int(amounts.get("memory", 0)),
            gpus=amounts.get("GPU", 0.0),
            resources={name: amounts[name] for name in nodes.custom(amounts)},
            owner=group.user,
        ),
        owner=Owner(user=group.user),
    )
