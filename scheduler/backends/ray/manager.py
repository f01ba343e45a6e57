"""Ray as a cluster manager. A lease is a placement group, and Ray chooses its devices.

Ray ends its driver, the service's process, a minute after Ray's head is gone. The next service then serves the kernels
that live while Ray is away. A service whose calls hang for a minute ends itself in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from roost.launchers.daemon.tasks import cancel_all, join_shared, spawn, start_shared
from roost.launchers.protocol.messages import Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent, decode_agent, shorten_error
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.backends.base import Backend, BackendContext, Lease
from roost.scheduler.backends.key_pair import KeyPair, load_service_key_pair
from roost.scheduler.backends.node_types import make_node_types
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError
from roost.scheduler.messages import Finding

from . import SPEC, agent_task, join, nodes, placement_groups
from .new_nodes import RayNewNodes
from .nodes import RayNode
from .placement_groups import Group
from .settings import RoostRayBackend

T = TypeVar("T")
log = logging.getLogger(__name__)

_LOOK_S = 0.5
"""How long to wait between two readings of Ray's state (0.4 ms each): joins, deaths and lost leases show within 1 s."""
_LOOK_WAITING_S = 0.2
"""The same while a kernel waits for a new node."""
_JOIN_S = 45.0
_START_AGENT_S = 45.0
_READER_AFTER_S = 5.0
"""How long after an agent's start a worker starts for later claims, so that it slows down no kernel's start."""
_PROBE_S = 30.0
_CALL_S = 8.0
_THREADS = 32
"""At most this many calls run at a time. A claim occupies a thread while it waits for Ray."""
_HANGS_S = 60.0
"""How long Ray may answer no call before the service ends. Calls that hang keep their threads, and their driver."""
_CONFIRM_S = 0.8
"""Ray reports freed resources up to 1 s late. Doubt a refusal for this long before raising `LeaseConflict`."""
_ASK_AGAIN_S = 0.1
"""How long to wait before asking again with a new group. Ray itself retries a waiting group only after 1 s."""


class RayCalls:
    """A pool of threads for Ray's functions, which block. After its deadline a call is left to end by itself.

    If Ray answers no call for long, the service ends. The next one has threads and a driver of its own.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ray")
        self._silent_since: float | None = None
        """When the first question reached its deadline after Ray's last answer; None if none did."""

    def close(self) -> None:
        """Start no more calls. Those under way are left alone."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[[], T], *, deadline_s: float) -> T:
        """Return the result of `call` or raise its error; raise `asyncio.TimeoutError` after the deadline."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, call), deadline_s)
        except asyncio.TimeoutError:
            self._check_silence()
            raise

    async def ask(self, question: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Return what `question` returns; raise `BackendUnavailable` if it fails or takes too long."""

        def call() -> T:
            try:
                return question(*arguments, **named)
            finally:
                self._silent_since = None  # also after its deadline, or with an error

        try:
            return await self.run(call, deadline_s=_CALL_S)
        except (RoostError, asyncio.CancelledError):
            raise
        except asyncio.TimeoutError:
            self._silent_since = self._silent_since or time.monotonic()
            raise BackendUnavailable(f"Ray has not answered for {_CALL_S:g} s") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed: {shorten_error(error)}") from error

    def _check_silence(self) -> None:
        """End the service if questions have reached their deadlines for long, and Ray has answered none."""
        if self._silent_since is not None and time.monotonic() - self._silent_since >= _HANGS_S:
            log.error(
                "Ray has answered no call for %g s: the service ends, and the next one joins Ray", _HANGS_S
            )
            _end_service()

    def begin(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call it in a thread, and do not wait for it."""
        with contextlib.suppress(RuntimeError):  # it is closed
            self._threads.submit(call, *arguments)

    async def answer(self, reference: Any, deadline_s: float, purpose: str) -> Any:
        """Return the result behind a Ray reference. `purpose` ends an error's sentence ("to start x")."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(reference.future()), deadline_s)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Ray took longer than {deadline_s:g} s {purpose}") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed {purpose}: {shorten_error(error)}") from error


def create(settings: RoostRayBackend, context: BackendContext) -> Backend:
    """Return the Ray backend. `BackendSpec.create` names this function."""
    manager = RayManager(settings, load_service_key_pair(context.folder))
    return AgentPerNodeBackend(
        SPEC.name,
        manager,
        settings.agent_settings(),
        context,
        grace_s=settings.manager_grace_s,
        new_nodes=manager.new_nodes,
    )


class RayManager:
    """A `ClusterManager` for one Ray cluster.

    The settings name the cluster, else RAY_ADDRESS names it. If both are empty, it is the cluster that was joined last.
    If none was joined yet, it is the cluster on this machine.
    """

    name = "Ray"
    daemon = "raylet"
    claim_name = "placement group"
    other_holders = "Ray actors and tasks that roost did not start"
    holds_claims = True
    build_node = staticmethod(nodes.build_node)

    def __init__(
        self,
        settings: RoostRayBackend,
        key_pair: KeyPair,
        calls: RayCalls | None = None,
    ) -> None:
        self._settings = settings
        self._key_pair = key_pair
        self._calls = calls or RayCalls()
        self._address = ""
        self._group_ids: dict[str, str] = {}  # Ray's, by lease
        self._creating: dict[str, asyncio.Task[Any]] = {}  # by group name
        self._anchors: dict[str, Any] = {}  # by raylet
        self._has_begun: set[str] = set()
        """The raylets on which this service has begun to start an agent."""
        self._brought_up: dict[str, asyncio.Task[StartedAgent]] = {}
        """The agents that a claim brings up, by raylet."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._own_address = ""
        """The address of the raylet through which the cluster was joined."""
        self.membership: Membership[RayNode] = Membership(self.name, join=self._join, fetch=self._fetch)
        self.new_nodes = RayNewNodes(
            self.membership,
            self._ask,
            self._calls,
            self._creating,
            given=make_node_types(settings.node_types),
            after_s=settings.scale_after_s,
            start_timeout_s=settings.node_start_timeout_s,
        )

    async def close(self) -> None:
        await cancel_all(self._tasks)
        await self.new_nodes.close()
        self._calls.close()

    async def wait_until_described(self) -> None:
        """Return at once: one reading of Ray's state is complete."""

    async def wait_for_change(self) -> None:
        await asyncio.sleep(_LOOK_WAITING_S if self.new_nodes.waits else _LOOK_S)

    async def read_metrics(self) -> Collection[str]:
        return ()

    async def environment(self, lease: Lease, address: str) -> Mapping[str, str]:
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
        name = _name_group(lease)
        if not self.new_nodes.is_granted(name):
            return await self._claim(lease, name, node, has_room)
        if lease.request.gpus and (starting := self._brought_up.get(node.daemon)):
            await asyncio.wait([starting])  # a second worker would slow the agent's start down
        find = functools.partial(self._ask, placement_groups.find_granted, name, lease.request, node)
        return await self._take(lease, name, node, find)

    def can_take_on(self, node: RayNode) -> bool:
        return not node.is_held_up

    async def release(self, lease: Lease) -> None:
        name = _name_group(lease)
        reading = None
        if name in self._creating:  # a cancelled claim goes on in its thread, and would outlive the removal
            creating = self._creating[name]
            await asyncio.wait([creating])
            reading = _find_reading(creating)
        await self._ask(placement_groups.remove, name)
        if reading is not None:
            await self._ask(placement_groups.cancel_reading, reading)
        self._group_ids.pop(lease.id, None)
        self.new_nodes.forget(lease.id, name)

    async def claims(self) -> Sequence[Lease]:
        groups = await self._ask(placement_groups.read_groups)
        self._group_ids.update({group.lease_id: group.id for group in groups})
        # Ray may have created a group on a node that has just joined. Two readings: the first may have begun before.
        for _ in range(2):
            known = {node.daemon for node in self.membership.nodes.values()}
            if all(group.node in known for group in groups if group.is_created):
                break
            await self.membership.read()
        self.new_nodes.note(groups)  # now: to a reading of before, the new node would be one that has left
        by_daemon = {node.daemon: node.id for node in self.membership.nodes.values()}
        return [_build_lease(group, by_daemon.get(group.node, "")) for group in groups]

    def unclaimed(self, leases: Sequence[Lease], node: RayNode) -> list[Lease]:
        if node.groups is None:
            return []
        # A lease that another scheduler has claimed has no group here.
        groups = {*node.groups, None}
        return [lease for lease in leases if self._group_ids.get(lease.id) not in groups]

    async def start_agent(self, node_id: str) -> StartedAgent:
        away, node = self.membership.away, self.membership.nodes.get(node_id)
        if away or node is None:
            raise BackendUnavailable(f"there is no agent on {node_id}: {away or 'no such node in Ray'}")
        if (by_claim := self._brought_up.get(node.daemon)) is not None:
            with contextlib.suppress(RoostError):  # the claim was taken back, and its task with it
                return await join_shared(by_claim)
        self._has_begun.add(node.daemon)
        bring_up = await self._ask(self._prepare, node)
        reference = await self._ask(agent_task.start_on, node, bring_up)
        return await self._find_agent(node, reference)

    def _prepare(self, node: RayNode) -> agent_task.BringUp:
        settings = replace(
            self._settings.agent_settings(),
            cpus=node.total.get("CPU", 0.0),
            memory_bytes=int(node.total.get("memory", 0)),
            address=node.address,
        )
        return agent_task.prepare(
            node,
            settings,
            client=self._key_pair.public,
            cluster_address=self._address,
            grace_s=self._settings.manager_grace_s,
            python=self._settings.python,
        )

    async def _find_agent(self, node: RayNode, reference: Any) -> StartedAgent:
        """Return the agent that is the answer behind a Ray reference."""
        purpose = f"to start roost's agent on {node.id}"
        answer = await self._calls.answer(reference, _START_AGENT_S, purpose)
        agent = decode_agent(answer, node.id, node.daemon, self._key_pair)
        if node.total.get("GPU"):
            spawn(self._start_reader(node), self._tasks, log)
        return agent

    async def _start_reader(self, node: RayNode) -> None:
        """Have a worker ready for the next claim with GPUs on a node, once the first kernel there has started."""
        await asyncio.sleep(_READER_AFTER_S)
        with contextlib.suppress(BackendUnavailable):
            await self._ask(placement_groups.start_reader, node)

    async def diagnose(self) -> list[Finding]:
        return []

    def _named(self) -> str:
        return self._settings.address or os.environ.get(SPEC.address_variable, "")

    async def _join(self, known: str) -> str:
        address = self._named() or known
        join_ray = functools.partial(join.join, address, namespace=placement_groups.NAMESPACE)
        self._address = await self._calls.run(join_ray, deadline_s=_JOIN_S)
        self._anchors.clear()  # those of a driver that has left are lost
        self.new_nodes.reset(self._address)
        return self._address

    async def _fetch(self) -> Iterable[RayNode]:
        found: tuple[RayNode, ...] = await self._ask(nodes.read, self.membership.nodes.values())
        kept = set() if self._is_elastic else {node.daemon for node in found}
        for daemon in self._anchors.keys() - kept:
            del self._anchors[daemon]
        self._has_begun &= {node.daemon for node in found}
        await self._check_raylet(found)
        await self.new_nodes.keep_up(found)
        return found

    async def _check_raylet(self, found: Collection[RayNode]) -> None:
        """Leave the cluster if the raylet through which it was joined has ended, and another one runs there.

        Ray regards this driver as ended then, and forgets the functions and actors that the driver has sent. It does
        not tell the driver. Without a new raylet the driver stays, because it can still claim.
        """
        own = next((node for node in found if node.daemon == join.get_raylet()), None)
        if own is not None:
            self._own_address = own.address
        elif any(node.address == self._own_address for node in found):
            self._own_address = ""
            problem = "the raylet of this machine was started again"
            log.warning("roost leaves the Ray cluster and joins it again: %s", problem)
            self.membership.away = problem  # a call without a driver would start a cluster of its own
            await self._calls.run(join.leave, deadline_s=_JOIN_S)
            raise BackendUnavailable(problem)

    @property
    def _is_elastic(self) -> bool:
        return self.new_nodes.adds_nodes or self.new_nodes.may_grow

    async def _ask(self, question: Any, *arguments: Any, **named: Any) -> Any:
        self.membership.check()  # a call to Ray while its head is gone blocks a thread, or even aborts the process
        return await self._calls.ask(question, *arguments, **named)

    async def _claim_devices(self, lease: Lease, node: RayNode) -> tuple[str, ...]:
        """Claim exactly the devices of a live kernel. Ray grants the first free device.

        Further groups take free devices until one of them has the lease's devices. That group is removed, and
        the lease's own group takes its place. If the service is killed meanwhile, `claims` shows the further
        groups as leases of an earlier start, which are released.
        """
        name = _name_group(lease)
        names = (_name_group(lease, f"~{number}") for number in itertools.count(1))
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
        """Claim the slice with a placement group of that name; return the ids of the granted devices."""
        create = functools.partial(self._create, name, lease.request, node, has_room)
        return await self._take(lease, name, node, create)

    async def _take(
        self,
        lease: Lease,
        name: str,
        node: RayNode,
        find: Callable[[agent_task.BringUp | None], Awaitable[Group]],
    ) -> tuple[str, ...]:
        """Return the ids of the devices that Ray has granted to the group that `find` returns.

        On a node where this service has begun to start no agent, what reads the devices brings up the agent, too. If
        the caller is cancelled, `release` waits until the group is found.
        """

        async def find_group() -> Group:
            return await find(await self._ask(self._prepare, node) if is_new else None)

        async def find_agent() -> StartedAgent:
            return await self._find_agent(node, (await join_shared(finding)).agent)

        is_new = bool(lease.request.gpus) and node.daemon not in self._has_begun
        finding = start_shared(find_group())
        self._creating[name] = finding
        if is_new:
            self._has_begun.add(node.daemon)
            agent = self._brought_up[node.daemon] = start_shared(find_agent())
            agent.add_done_callback(lambda _: self._brought_up.pop(node.daemon, None))
        try:
            return await self._read_devices(lease, await join_shared(finding))
        except BackendUnavailable:
            self._anchors.pop(node.daemon, None)  # a lost anchor may be the cause
            raise
        finally:
            finding.add_done_callback(lambda _: self._creating.pop(name, None))

    async def _read_devices(self, lease: Lease, group: Group) -> tuple[str, ...]:
        self._group_ids[lease.id] = group.id
        if group.device_ids is None:
            return ()
        purpose = "to report which devices it has granted"
        try:
            deadline_s = _PROBE_S if group.agent is None else _START_AGENT_S
            return tuple(await self._calls.answer(group.device_ids, deadline_s, purpose))
        except BaseException:
            self._calls.begin(placement_groups.cancel_reading, group.device_ids)
            raise

    async def _find_anchor(self, node: RayNode) -> Any:
        """Return the node's anchor, or None where nodes come and go: Ray ends no node that has an object."""
        if self._is_elastic:
            return None
        anchor = self._anchors.get(node.daemon)
        if anchor is None:
            anchor = self._anchors[node.daemon] = await self._ask(placement_groups.create_anchor, node)
        return anchor

    async def _create(
        self,
        name: str,
        request: Request,
        node: RayNode,
        has_room: HasRoom | None,
        bring_up: agent_task.BringUp | None,
    ) -> Group:
        """Create the placement group.

        After a refusal, try again for `_CONFIRM_S`, unless the node is full.
        """
        anchor = await self._find_anchor(node) if request.gpus and bring_up is None else None
        believe_at = time.monotonic() + _CONFIRM_S
        while True:
            try:
                group: Group = await self._ask(placement_groups.create, name, request, node, anchor, bring_up)
                return group
            except LeaseConflict:
                if time.monotonic() > believe_at or await self._is_full(request, node, has_room):
                    raise
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _is_full(self, request: Request, node: RayNode, has_room: HasRoom | None) -> bool:
        """True if the groups on the node leave no room, or Ray's figures of it, which may be 1 s late."""
        if await self._ask(placement_groups.leave_no_room, request, node):
            return True
        await self.membership.read()
        return has_room is not None and not has_room(node.id, request)


def _end_service() -> None:
    """End this process as Ray does: an orderly end would wait for the threads that hang."""
    os._exit(1)


def _name_group(lease: Lease, suffix: str = "") -> str:
    return placement_groups.name_group(f"{lease.id}{suffix}", lease.owner.user)


def _find_reading(creating: asyncio.Task[Any]) -> Any:
    """Return the Ray reference to the devices of a group that was created, or None."""
    if creating.cancelled() or creating.exception() is not None:
        return None
    group = creating.result()
    return group.device_ids if isinstance(group, Group) else None


def _build_lease(group: Group, node_id: str) -> Lease:
    """Return the lease as far as its group shows it.

    If no live raylet has the group, `node_id` is empty and the lease is lost, unless it waits for a new node.
    """
    is_held = group.is_created and bool(node_id)
    waits = not group.is_pinned and not group.is_created and not group.is_rescheduling
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
        state="pending" if waits else "held" if is_held else "lost",
        reason=_describe_claim(group, is_held=is_held, waits=waits),
    )


def _describe_claim(group: Group, *, is_held: bool, waits: bool) -> str:
    if is_held:
        return ""
    if waits:
        return "it waits for a node that Ray starts"
    node = f"its node {group.address}" if group.address else "its node"
    return f"{node} has left the Ray cluster"
