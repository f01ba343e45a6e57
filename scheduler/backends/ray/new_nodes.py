"""Groups that wait for a new node, on clusters whose autoscaler starts nodes.

Such a group is the lease itself: Ray creates it on the new node, or on a node that became free.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

from roost.launchers.daemon.tasks import join_shared, spawn, start_shared
from roost.placement import NodeType, Request, Snapshot
from roost.placement.model import NODE_LABEL
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.backends.agent_per_node.new_nodes import NewNodes
from roost.scheduler.backends.base import Lease
from roost.scheduler.errors import BackendUnavailable

from . import autoscaler, guard, placement_groups
from .autoscaler import Description, Kind
from .created_groups import CreatedGroups
from .nodes import MODEL_LABEL, MODEL_RESOURCE, RayNode
from .placement_groups import Group

log = logging.getLogger(__name__)

_READ_S = 1.0
"""How long to wait between two looks whether the autoscaler has to be described again."""
_FIND_S = 60.0
"""How long to wait before looking again whether a cluster without an autoscaler has one now."""
_COMES_BACK_S = 60.0
"""How long a cluster that has had an autoscaler may take to have one again, after it was joined."""
_DESCRIBE_S = 600.0
_DESCRIBE_SOON_S = 5.0
"""How long the head's files count as known: usually, and while the autoscaler may still begin."""
_TASK_S = 20.0
_GUARD_S = 10.0
"""How long a new group waits for the guard to live."""
_LEAST_AMOUNT = {"CPU": 0.0001}
"""The bundle of a request without amounts: Ray refuses an empty one."""

Ask = Callable[..., Coroutine[Any, Any, Any]]


class Calls(Protocol):
    """The part of `RayCalls` that waits for a Ray task."""

    async def answer(self, reference: Any, deadline_s: float, purpose: str) -> Any: ...


class RayNewNodes(NewNodes):
    """The autoscaler of a Ray cluster, and this user's groups that wait for its nodes.

    `given` are the operator's node types; empty: those of the autoscaler's file. `ask` calls a function of Ray in a
    thread. `creating` has the groups that are being created, by name.
    """

    def __init__(
        self,
        membership: Membership[RayNode],
        ask: Ask,
        calls: Calls,
        creating: dict[str, asyncio.Task[Any]],
        *,
        given: Sequence[NodeType] = (),
        after_s: float,
        start_timeout_s: float,
    ) -> None:
        self.after_s = after_s
        self.start_timeout_s = start_timeout_s
        self.address = ""
        """The address of the cluster's GCS."""
        self._membership = membership
        self._ask = ask
        self._calls = calls
        self._creating = creating
        self._given = tuple(given)
        self._on_change: Callable[[], None] = lambda: None
        self._kind: Kind = ""
        self._description: Description | None = None
        self._read_at = self._described_at = self._renewed_at = self._looked_at = -float("inf")
        self._expected_until = -float("inf")
        """Until when an autoscaler that has not reported yet may come back (`time.monotonic`)."""
        self._describing: asyncio.Task[None] | None = None
        self._names: dict[str, str] = {}
        """The groups that wait, by lease id."""
        self._group_ids: dict[str, str] = {}
        """Ray's ids of these groups, by lease id, as far as they are known."""
        self._created = CreatedGroups()
        self._tasks: set[asyncio.Task[Any]] = set()

    # What the cluster can start

    @property
    def adds_nodes(self) -> bool:
        return bool(self._kind) and self._description is not None

    @property
    def is_still_reading(self) -> bool:
        return self._description is None and (bool(self._kind) or self._is_expected)

    @property
    def _is_expected(self) -> bool:
        return time.monotonic() < self._expected_until

    @property
    def may_grow(self) -> bool:
        if self._description is None:
            return self.is_still_reading
        return not (self._given or self._description.types)

    def listen(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def list_types(self, snapshot: Snapshot) -> Sequence[NodeType]:
        return self._list_types()

    def _list_types(self) -> Sequence[NodeType]:
        if not self.adds_nodes:
            return ()
        assert self._description is not None
        types = self._given or self._description.types or ()
        return autoscaler.count(
            types, self._membership.nodes.values(), most_nodes=self._description.most_nodes
        )

    def why_not(self, request: Request) -> str:
        if NODE_LABEL in request.labels:
            return "a node that does not exist yet has no name"
        if request.gpu_memory_bytes:
            return "Ray cannot be asked for a node by the memory of its GPUs: ask for a gpu_model instead"
        if not self._needs_selector(request):
            return ""
        if not placement_groups.takes_selectors():
            return "this version of Ray cannot be asked for a node by its labels or its GPU model"
        if self._kind == "first":
            return (
                "this cluster's autoscaler would start nodes of other kinds for a label or a GPU model: ask for "
                "amounts and resources alone, or let the operator set RAY_enable_autoscaler_v2=1 on the head"
            )
        return ""

    def _list_models(self, request: Request) -> list[str]:
        """Return the models of nodes and node types that the request accepts."""
        models = {node.model for node in self._membership.nodes.values()}
        models |= {each.node.devices[0].model for each in self._list_types() if each.node.devices}
        return sorted(model for model in models if model and request.accepts_model(model))

    def _find_mark(self, request: Request) -> str:
        """Return the resource that marks the one model that the request accepts; empty if a label must do."""
        models = self._list_models(request) if request.gpu_models else []
        marked = self._description.marked_models if self._description is not None else ()
        return f"{MODEL_RESOURCE}{models[0]}" if len(models) == 1 and models[0] in marked else ""

    def _needs_selector(self, request: Request) -> bool:
        return bool(request.labels) or bool(request.gpu_models and not self._find_mark(request))

    def _build_wish(self, request: Request) -> tuple[dict[str, float], dict[str, str]]:
        """Return bundle and label selector of a group for the request, on any node."""
        bundle, selector = placement_groups.build_amounts(request), dict(request.labels)
        if mark := self._find_mark(request):
            bundle[mark] = 0.001
        elif request.gpu_models:
            models = self._list_models(request) or list(request.gpu_models)
            selector[MODEL_LABEL] = models[0] if len(models) == 1 else f"in({','.join(models)})"
        return bundle or dict(_LEAST_AMOUNT), selector

    # Leases

    async def ask(self, lease: Lease) -> None:
        name = placement_groups.name_group(lease.id, lease.owner.user)
        bundle, selector = self._build_wish(lease.request)
        await self._renew(name)
        creating = start_shared(self._ask(placement_groups.create_unpinned, name, bundle, selector))
        self._creating[name] = creating
        try:
            await join_shared(creating)
        finally:
            creating.add_done_callback(lambda _: self._creating.pop(name, None))
        self._names[lease.id] = name
        log.info("lease=%s Ray was asked for a node with %s", lease.id, lease.request.describe())

    async def follow(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        if any(lease.id not in self._group_ids for lease in leases) or self._is_look_due:
            await self._look(leases)
        return [self._show(lease) for lease in leases]

    async def _look(self, leases: Sequence[Lease]) -> None:
        """Find the groups of these leases in Ray's table."""
        self._looked_at = time.monotonic()
        groups = {group.name: group for group in await self._ask(placement_groups.read_groups)}
        for lease in leases:
            group = groups.get(self._names.get(lease.id, ""))
            if group is None:
                self._names.pop(lease.id, None)
                self._group_ids.pop(lease.id, None)
            else:
                self._group_ids[lease.id] = group.id

    @property
    def waits(self) -> bool:
        """True while a group waits for a node."""
        return bool(self._names)

    def is_granted(self, name: str) -> bool:
        """True if Ray has created this group, which is not tied to its node."""
        return name in self._created

    def forget(self, lease_id: str, name: str) -> None:
        """Follow a group no longer, because it is removed."""
        self._names.pop(lease_id, None)
        self._group_ids.pop(lease_id, None)
        self._created.forget(name)

    def hold(self, lease: Lease) -> None:
        self._created.advance([placement_groups.name_group(lease.id, lease.owner.user)], "held")

    async def settle(self, lease: Lease) -> None:
        self._created.advance([placement_groups.name_group(lease.id, lease.owner.user)], "noted")
        await self._tell_noted()

    async def _tell_noted(self) -> None:
        """Tell the guard which leases agents have noted. If Ray does not answer, the next renewal tells it again."""
        head = self._find_head()
        names = self._created.in_states("noted")
        if not names or head is None:
            return
        try:
            await self._ask(guard.settle, head, names)
        except BackendUnavailable as problem:
            log.info("the guard of new nodes hears later of %d leases: %s", len(names), problem)
            return
        self._created.advance(names, "settled")

    def note(self, groups: Sequence[Group]) -> None:
        """Note the groups that an earlier service has left on nodes, without being tied to them."""
        for group in groups:
            if group.is_created and not group.is_pinned:
                self._created.add(group.name, group.node, "found")

    @property
    def _is_look_due(self) -> bool:
        return time.monotonic() - self._looked_at >= guard.RENEW_S

    async def _renew(self, *new: str) -> None:
        """Tell the guard which groups are wanted: new ones, and those that wait. Start the guard if there is none.

        It must live before a new group does: a service that is killed right after that leaves the group to it.
        """
        self._renewed_at = time.monotonic()
        names = [*self._names.values(), *self._created.in_states("held", "noted"), *new]
        head = self._find_head()
        if not names:
            return
        if head is None:
            log.warning("Ray shows no head: if this service ends, its groups that wait for nodes stay")
            return
        answer = await self._ask(guard.renew, head, names)
        if new:
            try:
                await self._calls.answer(answer, _GUARD_S, "to start the guard of new nodes")
            except BackendUnavailable as problem:
                log.warning("if this service ends, its groups that wait for nodes may stay: %s", problem)

    def _show(self, lease: Lease) -> Lease:
        if lease.id not in self._names:
            return replace(lease, state="lost", reason="its placement group was removed")
        group_id = self._group_ids[lease.id]
        at = next((each for each in self._membership.nodes.values() if group_id in (each.groups or ())), None)
        if at is None:
            return replace(lease, state="pending", reason=_describe_wait(lease.request))
        name = self._names.pop(lease.id)
        self._created.add(name, at.daemon, "held")
        del self._group_ids[lease.id]
        return replace(lease, state="pending", node_id=at.id)

    # The cluster

    def reset(self, address: str) -> None:
        """Forget what is known, because the cluster at this address was joined.

        The autoscaler of a head that has just come back reports some seconds after the head's nodes.
        """
        self.address = address
        if self._kind:
            self._expected_until = time.monotonic() + _COMES_BACK_S
        self._kind, self._description = "", None
        self._read_at = self._described_at = self._renewed_at = self._looked_at = -float("inf")
        if self._describing is not None:
            self._describing.cancel()
            self._describing = None

    async def close(self) -> None:
        if self._describing is not None:
            self._describing.cancel()

    async def keep_up(self, found: Sequence[RayNode]) -> None:
        """Follow the cluster after a reading of its nodes. Costs nothing while there is no autoscaler."""
        if self._created:
            await self._remove_orphans({node.daemon for node in found})
        now = time.monotonic()
        if now - self._renewed_at >= guard.RENEW_S:
            await self._tell_noted()
            try:
                await self._renew()
            except BackendUnavailable as problem:  # the guard's problem is no outage
                log.warning("the guard of new nodes does not hear which groups are wanted: %s", problem)
        if now - self._read_at < (_READ_S if self._kind or self._is_expected else _FIND_S):
            return
        was_expected = self._read_at < self._expected_until
        self._read_at = now
        try:
            if not self._kind:
                self._kind = await self._ask(autoscaler.find_kind)
        except (BackendUnavailable, ValueError) as problem:
            log.debug("Ray's autoscaler does not report: %s", problem)
            return
        if was_expected and not self._kind and not self._is_expected:
            self._on_change()  # what waited for the autoscaler's report waits no longer
        is_due = now - self._described_at >= (_DESCRIBE_SOON_S if self._is_description_short else _DESCRIBE_S)
        if self._kind and is_due:
            self._described_at = now
            head = next((node for node in found if node.is_head), None)
            if self._describing is None or self._describing.done():
                self._describing = spawn(self._describe(head), self._tasks, log)

    @property
    def _is_description_short(self) -> bool:
        """True while the head's files may soon say more than they did."""
        return self._is_expected and self._description is not None and not self._description.has_monitor

    async def _remove_orphans(self, daemons: set[str]) -> None:
        """Remove the groups of nodes that have ended: else Ray starts another node for a kernel that has ended too."""
        for name in self._created.without_node(daemons):
            log.info("group=%s is removed, because its node has ended", name)
            await self._ask(placement_groups.remove, name)
            self._created.forget(name)

    async def _describe(self, head: RayNode | None) -> None:
        """Read the head's files about the autoscaler."""
        before = self.adds_nodes, self.may_grow, self._description
        try:
            if head is None:
                raise BackendUnavailable("Ray shows no head")
            reference = await self._ask(autoscaler.read_on, head, self.address)
            answer = await self._calls.answer(reference, _TASK_S, "to read the autoscaler's file on the head")
            self._description = autoscaler.decode(answer)
        except (BackendUnavailable, ValueError) as problem:
            if self._description is None:
                log.warning("the types of nodes that Ray's autoscaler can start are not known: %s", problem)
                self._description = Description(has_monitor=False, types=None)
        if self._description.has_monitor and self._description.types is None and not self._given:
            # A monitor without a file only reports: the cluster stands still.
            self._kind, self._description = "", None
            self._read_at, self._expected_until = float("inf"), -float("inf")
        if before != (self.adds_nodes, self.may_grow, self._description):
            self._on_change()

    def _find_head(self) -> RayNode | None:
        return next((node for node in self._membership.nodes.values() if node.is_head), None)


def _describe_wait(request: Request) -> str:
    """Return why a group waits, as a clause."""
    return f"Ray's autoscaler was asked for {request.describe()}: `ray status` says more"
