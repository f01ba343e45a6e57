"""The backend of all cluster managers that run each kernel in a pod of its own.

The lease is the pod. It is pending until the manager has granted the pod and the pod's agent has noted the
lease. Any process finds the pods again in the cluster, so this backend stores nothing on disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from roost.launchers.daemon.tasks import backoff, cancel_all, join_shared, spawn, start_shared
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import (
    AgentAddress,
    AgentEvent,
    Launch,
    Lease,
    Owner,
    Reserve,
)
from roost.placement import Node, NodeType, Request, Snapshot
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.backends.agent_calls import AgentCaller, Agents, until_listening
from roost.scheduler.backends.base import Backend, BackendEvent, Finding, Growth, LeaseReading
from roost.scheduler.backends.event_queue import EventQueue
from roost.scheduler.backends.node_types import count_nodes
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError, UnknownKernel

from .pods import Pod, PodChange, PodCluster

log = logging.getLogger(__name__)

_REJOIN_S = (0.5, 5.0)
"""First and longest pause between two attempts to join a manager that is away."""
_DELETE_AGAIN_S = (1.0, 30.0)
"""First and longest pause between two attempts to delete a pod whose lease is released."""
_AGENT_S = 5.0
"""How long an agent in a pod may take to answer before the pod is deleted without it."""
_ANSWERS_S = 1.0
"""How long a reading of all pods waits for the agents of pods that it has found."""
_CLOSE_S = 5.0
_REMEMBERED = 1_000
"""The ends of at most this many pods are remembered."""
_STARTING = "its agent is starting"


@dataclass(slots=True)
class _Known:
    """What is known of a pod besides its lease."""

    address: AgentAddress | None = None
    is_granted: bool = False
    waits_for: str = ""
    """The manager's reason why the pod is not granted, or its agent does not listen yet."""
    is_noted: bool = False
    """True if the pod's agent has noted the lease, as far as this process knows."""
    may_run: bool = False
    """True for a granted pod that was found: it may have a kernel, although its agent does not answer."""
    noting: asyncio.Task[Any] | None = None
    """Set while the agent is asked to do so."""


class PodGrowth(Growth):
    """The growth of a cluster whose manager keeps pods that wait for a node.

    `types` are all kinds of nodes that it could start, with the labels of their nodes; empty: not known.
    """

    def __init__(self, types: Sequence[NodeType] = ()) -> None:
        self._types = types

    @property
    def adds_nodes(self) -> bool:
        return True

    @property
    def may_grow(self) -> bool:
        return not self._types

    def list_types(self, snapshot: Snapshot) -> Sequence[NodeType]:
        return count_nodes(self._types, snapshot)


class AgentPerKernelBackend(Backend):
    """A backend with pods of `cluster` as leases. Each pod's agent runs one kernel.

    `agents` is from the `BackendContext`. `linger_s` is how long a lease outlives a kernel that ended by itself, so
    that a restarter may start it again: give it the context's `restart_grace_s`.

    The backend adds the requests of its pods to the nodes that the cluster returns. It reads the nodes again after each
    conflict and each deletion, and otherwise follows `changes`.
    """

    def __init__(
        self,
        cluster: PodCluster,
        agents: Agents,
        *,
        linger_s: float,
        growth: Growth = Backend.growth,
    ) -> None:
        self.name = cluster.name
        self.growth = growth
        self._cluster = cluster
        self._agents = agents
        self._linger_s = linger_s
        self._away = "it has not been joined yet"
        self._creating: dict[str, asyncio.Task[Lease]] = {}
        cluster.creating = self._creating.keys()
        self._pods: dict[str, _Known] = {}
        """The pods that have not ended, by lease id."""
        self._ended_at = LastEntries[str, float](_REMEMBERED)
        """When the pods of the last leases have ended, as `time.monotonic` returns it."""
        self._nodes: dict[str, Node] = {}
        """The nodes by name, without the resources that roost's pods take."""
        self._snapshot = Snapshot.of([])
        self._differs: set[str] = set()
        """The nodes that differ from the snapshot."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._deleting: set[str] = set()
        """The leases whose pods are deleted in the background."""
        self._events = EventQueue()

    async def open(self) -> None:
        self._agents.listen(self._on_agent)
        await self._join()
        spawn(self._follow(), self._tasks, log)

    async def close(self) -> None:
        await asyncio.gather(*self._creating.values(), return_exceptions=True)
        try:
            # At the timeout the tasks are cancelled again: `changes` may have lost the first cancellation.
            await asyncio.wait_for(cancel_all(self._tasks), _CLOSE_S)
        except asyncio.TimeoutError:
            log.error("%s: its stream of changes does not end", self.name)
        await self._cluster.close()
        self._events.close()

    async def snapshot(self) -> Snapshot:
        if self._away:
            raise BackendUnavailable(self._describe_away())
        if self._differs:
            nodes = {name: self._nodes[name] for name in self._differs & self._nodes.keys()}
            for name in nodes:
                for lease in self.book.on(name):
                    nodes[name] = nodes[name].with_kernel(lease.request, lease.device_ids)
            self._snapshot = self._snapshot.apply(nodes.values(), self._differs - nodes.keys())
            self._differs.clear()
        return self._snapshot

    def events(self) -> AsyncIterator[BackendEvent]:
        return self._events.read()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        self.book.want(lease)
        known = self.book.get(lease.id)
        if known is not None and self.book.is_shown(lease.id):
            return known
        creating = self._creating.get(lease.id)
        if creating is None:
            creating = self._creating[lease.id] = start_shared(self._create(lease, launch))
        # A creation ends as a whole, also if this call is cancelled, so that a deletion finds the pod.
        return await join_shared(creating)

    async def _create(self, lease: Lease, launch: Launch | None) -> Lease:
        try:
            pod = await self._cluster.create(lease, launch)
        except LeaseConflict:
            await self._read_nodes()
            raise
        finally:
            del self._creating[lease.id]
        return self._note(pod)

    async def release(self, lease: Lease) -> None:
        self.book.release(lease.id)
        pod = self._pods.get(lease.id)
        if pod is not None and pod.address is not None:
            # The agent interrupts its kernel's children too, and writes the last lines. A manager only kills.
            try:
                await asyncio.wait_for(self._caller(lease).call(lambda a: a.release(lease.id)), _AGENT_S)
            except (RoostError, asyncio.TimeoutError) as problem:
                log.info("lease=%s its pod is deleted without its agent: %s", lease.id, problem)
        await self._delete(lease.id)

    async def leases(self) -> LeaseReading:
        if not self._away:
            await self._read_pods()
        return LeaseReading(leases=tuple(self.book), unreachable=frozenset({self.name} if self._away else ()))

    async def agent(self, lease: Lease) -> AgentAddress:
        pod = self._pods.get(lease.id)
        if pod is None:
            problem = f"the {self._cluster.unit} of kernel {lease.kernel_id} has ended"
            raise UnknownKernel(problem, kernel_id=lease.kernel_id)
        if pod.address is None:
            raise BackendUnavailable(
                f"kernel {lease.kernel_id} has no agent yet: {pod.waits_for or _STARTING}"
            )
        return pod.address

    async def explain_loss(self, lease: Lease) -> str:
        return await self._cluster.explain_end(lease.id)

    async def warm_up(self) -> int:
        await self._cluster.warm_up()
        await self._read_nodes()
        return 0

    async def diagnose(self) -> list[Finding]:
        return await self._cluster.diagnose()

    async def environment(self, lease: Lease) -> Mapping[str, str]:
        return self._cluster.environment(lease)

    def check_request(self, request: Request) -> None:
        self._cluster.check_request(request)

    def to_placement(self, request: Request) -> Request:
        return self._cluster.to_placement(request)

    # The cluster

    async def _join(self) -> None:
        self.address = await self._cluster.join()
        self._away = ""
        await self._read_nodes()
        await self._read_pods()

    async def _follow(self) -> None:
        """Follow the cluster's changes for as long as the backend is open."""
        pauses = backoff(*_REJOIN_S)
        while True:
            try:
                if self._away:
                    await self._join()
                    pauses = backoff(*_REJOIN_S)
                    self._judge_all()
                    self._events.put(BackendEvent(kind="resync"))
                async for change in self._cluster.changes():
                    await self._on_change(change)
            except Exception as problem:
                if not isinstance(problem, BackendUnavailable):
                    log.exception("%s: its changes cannot be followed", self.name)
                elif not self._away:
                    log.warning("%s is away: %s", self.name, problem)
                before, self._away = self._away, str(problem)
                if self._away != before:
                    self._judge_all()
                await asyncio.sleep(next(pauses))

    def _describe_away(self) -> str:
        return f"{self.name} is away, its kernels live on: {self._away}"

    def _judge_all(self) -> None:
        """Show anew why leases are pending, because the manager is away or back."""
        for lease in [lease for lease in self.book if lease.id in self._pods]:
            self._judge(lease)

    async def _on_change(self, change: PodChange) -> None:
        if change.kind == "pod" and change.pod is not None:
            self._note(change.pod)
        elif change.kind == "gone":
            self._lose(change.lease_id, change.reason)
        elif change.kind == "warning":
            if change.lease_id in self._pods and not self.book.is_released(change.lease_id):
                event = BackendEvent(kind="lease_warned", lease_id=change.lease_id, reason=change.reason)
                self._events.put(event)
        elif change.kind == "nodes":
            await self._read_nodes()
        else:
            await self._read_nodes()
            await self._read_pods()
            self._events.put(BackendEvent(kind="resync"))

    async def _read_nodes(self) -> None:
        before, self._nodes = self._nodes, {node.id: node for node in await self._cluster.nodes()}
        differ = {name for name, node in self._nodes.items() if before.get(name) is not node}
        self._redraw(*differ, *(before.keys() - self._nodes.keys()))

    async def _read_pods(self) -> None:
        """Read all pods. Pods that another scheduler created are noted too."""
        before, began = set(self._pods), time.monotonic()
        found = {pod.lease.id: pod for pod in await self._cluster.pods()}
        for lease_id, ended_at in self._ended_at.items():
            if ended_at >= began:  # what was read of its pod may be older
                before.discard(lease_id)
                found.pop(lease_id, None)
        for lease_id in before & self._pods.keys() - found.keys():
            self._lose(lease_id, f"its {self._cluster.unit} is gone")
        for pod in found.values():
            self._note(pod)
            if self.book.is_released(pod.lease.id) and pod.lease.id not in self._pods:
                self._delete_soon(pod.lease.id)  # it was created although its creation seemed to have failed
        await self._reserve_again([lease_id for lease_id in found if lease_id not in before])

    async def _reserve_again(self, lease_ids: Sequence[str]) -> None:
        """Wait, for `_ANSWERS_S` at most, until the agents of pods that were just found have noted their leases.

        Their agents may have started while no scheduler ran. An agent that does not answer may have a kernel: its lease
        counts as held. Its owner is unknown until the agent answers.
        """
        pods = [self._pods[lease_id] for lease_id in lease_ids if lease_id in self._pods]
        held = [pod for pod in pods if pod.address is not None and pod.is_granted]
        if noting := [pod.noting for pod in held if pod.noting is not None]:
            await asyncio.wait(noting, timeout=_ANSWERS_S)
        for pod in held:
            pod.may_run = True
        for lease_id in lease_ids:
            if (lease := self.book.get(lease_id)) is not None and lease_id in self._pods:
                self._judge(lease)

    def _note(self, pod: Pod) -> Lease:
        """Note a pod that the cluster reports, unless its lease is released. Return the lease, as it is shown now."""
        lease = pod.lease
        if self.book.is_released(lease.id):  # a pod that ends still changes
            return lease
        before = self.book.get(lease.id)
        claimed, lease = lease, replace(lease, owner=_find_owner(lease, before))
        if lease.state == "lost":
            self._forget(lease.id)
            self.book.show(lease)
            return lease
        known = self._pods.get(lease.id)
        if known is None:
            known = self._pods[lease.id] = _Known()
            self._redraw(lease.node_id)
        elif before is not None and before.node_id != lease.node_id:
            self._redraw(lease.node_id, before.node_id)
        known.address = pod.address
        known.is_granted, known.waits_for = lease.state == "held", lease.reason
        if pod.address is None:
            known.is_noted = known.may_run = False
        elif not known.is_noted and known.noting is None:
            known.noting = spawn(self._reserve(claimed, known), self._tasks, log)
        return self._judge(lease)

    async def _reserve(self, claimed: Lease, pod: _Known) -> None:
        """Have the pod's agent note the lease, as soon as the agent listens. From then on the lease is held.

        `claimed` has the first owner. The agent's own note has the present one. The pod may be gone before the first
        step.
        """
        noted = claimed
        is_reported = False

        def is_wanted() -> bool:
            return self._pods.get(claimed.id) is pod and not pod.is_noted

        async def reserve() -> bool:
            nonlocal noted, is_reported
            lease = replace(
                self.book.get(claimed.id) or claimed, owner=claimed.owner, state="held", reason=""
            )
            asked = Reserve(lease=lease, is_granted=True, linger_s=self._linger_s)
            try:
                noted = await self._caller(lease).call(partial(AgentClient.reserve, request=asked))
            except RoostError as problem:
                is_refusal = not (is_reported or isinstance(problem, BackendUnavailable))
                log.log(
                    logging.WARNING if is_refusal else logging.DEBUG,
                    "lease=%s its agent has not noted it yet: %s",
                    claimed.id,
                    problem,
                )
                is_reported |= is_refusal
                return False
            return True

        try:
            await until_listening(reserve, is_wanted)
        finally:
            pod.noting = None
        if is_wanted():
            pod.is_noted = True
            shown = self.book.get(claimed.id) or claimed
            self._judge(shown if shown.owner.pid else replace(shown, owner=noted.owner))

    def _judge(self, lease: Lease) -> Lease:
        """Show the pod's lease, and return it: held once its agent has noted it, or if it may have a kernel."""
        pod = self._pods[lease.id]
        is_pending = not (pod.is_noted or pod.may_run)
        if is_pending and self._away and not pod.is_granted:
            lease = replace(lease, state="pending", reason=self._describe_away())
        elif is_pending:
            lease = replace(lease, state="pending", reason=pod.waits_for or _STARTING)
        else:
            lease = replace(lease, state="held", reason="")
        self.book.show(lease)
        return lease

    def _lose(self, lease_id: str, reason: str) -> None:
        """Show that the pod of this lease has ended, and why."""
        if lease_id in self._pods:
            self._forget(lease_id)
            self.book.lose(lease_id, reason)
            if self.book.is_released(lease_id):  # `lose` ignores it
                self.book.miss(lease_id)

    def _forget(self, lease_id: str) -> None:
        self._ended_at[lease_id] = time.monotonic()
        if self._pods.pop(lease_id, None) is not None and (lease := self.book.get(lease_id)) is not None:
            self._redraw(lease.node_id)

    def _redraw(self, *node_ids: str) -> None:
        self._differs |= set(node_ids)
        self._events.put(BackendEvent(kind="nodes"))

    # The agents

    def _caller(self, lease: Lease) -> AgentCaller:
        async def resolve() -> AgentAddress:
            known = self._pods.get(lease.id)
            if known is None or known.address is None:
                return await self.agent(lease)  # raises
            return known.address

        async def nothing(_: AgentAddress | None) -> None:
            return None

        return AgentCaller(
            self._agents, resolve, name=f"the agent of kernel {lease.kernel_id}", on_lost=nothing
        )

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        if event is None or event.kind != "released" or event.lease_id not in self._pods:
            return
        if not self.book.is_released(event.lease_id):
            self.book.release(event.lease_id)  # by the rules that the scheduler has given to the agent
            self._delete_soon(event.lease_id)

    def _delete_soon(self, lease_id: str) -> None:
        """Delete a pod whose lease is released. Try again until that succeeds. May be repeated."""
        if lease_id not in self._deleting:
            self._deleting.add(lease_id)
            spawn(self._delete_again(lease_id), self._tasks, log)

    async def _delete_again(self, lease_id: str) -> None:
        try:
            for pause_s in backoff(*_DELETE_AGAIN_S):
                try:
                    await self._delete(lease_id)
                    return
                except RoostError as problem:
                    log.warning(
                        "lease=%s its %s is not deleted yet: %s", lease_id, self._cluster.unit, problem
                    )
                await asyncio.sleep(pause_s)
                if not self.book.is_released(lease_id):  # it was claimed again
                    return
        finally:
            self._deleting.discard(lease_id)

    async def _delete(self, lease_id: str) -> None:
        if (creating := self._creating.get(lease_id)) is not None:
            await asyncio.wait([creating])
        await self._cluster.delete(lease_id)
        await self._read_nodes()  # a pod that ends keeps its resources for a while
        self._pods.pop(lease_id, None)
        self.book.miss(lease_id)
        # Also if the pod was gone before: its lease has counted until now.
        if (lease := self.book.get(lease_id)) is not None:
            self._redraw(lease.node_id)


def _find_owner(lease: Lease, before: Lease | None) -> Owner:
    """Return the owner of a pod's lease, as far as it is known without the pod's agent.

    The manager keeps the first owner, and the agent alone knows a later one. `before` is the lease as it is shown or
    claimed.
    """
    return before.owner if before is not None and before.owner.pid else Owner(user=lease.owner.user)
