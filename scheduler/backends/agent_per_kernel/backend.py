"""The backend of all cluster managers that run each kernel in a pod of its own.

The lease is the pod. It is pending until the manager has granted the pod and the pod's agent has noted the
lease. Any process finds the pods again in the cluster, so this backend stores nothing on disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from roost.launchers.daemon.tasks import backoff, cancel_all, join_shared, spawn, start_shared
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import (
    AgentAddress,
    AgentEvent,
    KernelProcess,
    Launch,
    Lease,
    Owner,
    Reserve,
)
from roost.placement import Node, Request, Snapshot
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.backends.agent_calls import AgentCaller, Agents, until_listening
from roost.scheduler.backends.base import Backend, BackendEvent, Finding, LeaseReading
from roost.scheduler.backends.event_queue import EventQueue
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError, UnknownKernel

from .pods import Pod, PodChange, PodCluster

log = logging.getLogger(__name__)

_REJOIN_S = (0.5, 5.0)
"""First and longest pause between two attempts to join a manager that is away."""
_AGENT_S = 5.0
"""How long an agent in a pod may take to answer before the pod is deleted without it."""
_ANSWERS_S = 1.0
"""How long a reading of all pods waits for the agents of pods that it has found."""
_CLOSE_S = 5.0
_REMEMBERED = 500
"""At most this many lost leases, and this many releases, are remembered."""
_STARTING = "its agent is starting"


class AgentPerKernelBackend(Backend):
    """A backend with pods of `cluster` as leases. Each pod's agent runs one kernel.

    `agents` is from the `BackendContext`. `linger_s` is how long a lease outlives a kernel that ended by itself, so
    that a restarter may start it again: give it the context's `restart_grace_s`. `adds_nodes` is as in `Backend`.

    The backend adds the requests of its pods to the nodes that the cluster returns. It reads the nodes again after each
    conflict and each deletion, and otherwise follows `changes`.
    """

    def __init__(
        self, cluster: PodCluster, agents: Agents, *, linger_s: float, adds_nodes: bool = False
    ) -> None:
        self.name = cluster.name
        self.adds_nodes = adds_nodes
        self._cluster = cluster
        self._agents = agents
        self._linger_s = linger_s
        self._away = "it has not been joined yet"
        self._creating: dict[str, asyncio.Task[Lease]] = {}
        cluster.creating = self._creating.keys()
        self._pods: dict[str, Pod] = {}
        self._starting: set[str] = set()
        """Ids of the leases that their agents have not noted yet, as far as this process knows."""
        self._lost = LastEntries[str, Lease](_REMEMBERED)
        """Leases whose pods have ended. A reading shows them with the reason, until they are released."""
        self._releasing = LastEntries[str, None](_REMEMBERED)
        self._noting: dict[str, asyncio.Task[Any]] = {}
        self._nodes: dict[str, Node] = {}
        """The nodes by name, without the resources that roost's pods take."""
        self._snapshot = Snapshot.of([])
        self._differs: set[str] = set()
        """The nodes that differ from the snapshot."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events = EventQueue()

    def places(self) -> Sequence[str]:
        return self._cluster.places()

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
            for lease in (pod.lease for pod in self._pods.values()):
                if lease.node_id in nodes and lease.state != "lost":
                    nodes[lease.node_id] = nodes[lease.node_id].with_kernel(lease.request, lease.device_ids)
            self._snapshot = self._snapshot.apply(nodes.values(), self._differs - nodes.keys())
            self._differs.clear()
        return self._snapshot

    def events(self) -> AsyncIterator[BackendEvent]:
        return self._events.read()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        known = self._pods.get(lease.id)
        if known is not None:
            return self._lease(known)
        self._releasing.pop(lease.id, None)
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
        self._starting.add(lease.id)
        return self._lease(self._note(pod))

    async def release(self, lease: Lease) -> None:
        self._releasing[lease.id] = None
        pod = self._pods.get(lease.id)
        if pod is not None and pod.address is not None:
            # The agent interrupts its kernel's children too, and writes the last lines. A manager only kills.
            try:
                await asyncio.wait_for(self._caller(pod).call(lambda a: a.release(lease.id)), _AGENT_S)
            except (RoostError, asyncio.TimeoutError) as problem:
                log.info("lease=%s its pod is deleted without its agent: %s", lease.id, problem)
        await self._delete(lease.id)

    async def transfer(self, lease: Lease, owner: Owner) -> Lease:
        transferred = replace(lease, owner=owner)
        pod = self._pods.get(lease.id)
        if pod is not None:
            await self._cluster.update(transferred)
            self._pods[lease.id] = replace(pod, lease=replace(pod.lease, owner=owner))
            if pod.address is not None:
                await self._wait_for_agent(pod)
                await self._caller(pod).call(lambda agent: agent.transfer(lease.id, owner))
        return transferred

    async def leases(self) -> LeaseReading:
        if not self._away:
            await self._read_pods()
        leases = (*map(self._lease, self._pods.values()), *self._lost.values())
        return LeaseReading(leases=leases, unreachable=frozenset({self.name} if self._away else ()))

    async def agent(self, lease: Lease) -> AgentAddress:
        pod = self._pods.get(lease.id)
        if pod is None:
            problem = f"the {self._cluster.unit} of kernel {lease.kernel_id} has ended"
            raise UnknownKernel(problem, kernel_id=lease.kernel_id)
        if pod.address is None:
            raise BackendUnavailable(
                f"kernel {lease.kernel_id} has no agent yet: {pod.lease.reason or _STARTING}"
            )
        await self._wait_for_agent(pod)
        return pod.address

    def reported_kernel(self, launch: Launch) -> KernelProcess | None:
        pod = self._pods.get(launch.lease_id)
        if pod is None or pod.kernel is None or launch.lease_id not in self._starting:
            return None
        return pod.kernel.build_process(launch, pod.lease.device_ids)

    async def explain_loss(self, lease: Lease) -> str:
        return await self._cluster.explain_end(lease.id)

    async def warm_up(self) -> int:
        await self._cluster.warm_up()
        await self._read_nodes()
        return 0

    async def diagnose(self) -> list[Finding]:
        return await self._cluster.diagnose()

    def environment(self, lease: Lease) -> Mapping[str, str]:
        return self._cluster.environment(lease)

    def check_request(self, request: Request) -> None:
        self._cluster.check_request(request)

    def to_placement(self, request: Request) -> Request:
        return self._cluster.to_placement(request)

    # The cluster

    async def _join(self) -> None:
        self.address = await self._cluster.join()
        self.cluster_id = self._cluster.cluster_id
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
                    self._publish_pending()
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
                    self._publish_pending()
                await asyncio.sleep(next(pauses))

    def _describe_away(self) -> str:
        return f"{self.name} is away, its kernels live on: {self._away}"

    def _publish_pending(self) -> None:
        """Publish why leases are pending, because the manager is away or back."""
        for pod in self._pods.values():
            if pod.lease.state == "pending":
                self._publish_reason(self._lease(pod))

    def _publish_reason(self, lease: Lease) -> None:
        event = BackendEvent(kind="lease_pending", lease_id=lease.id, reason=lease.reason, lease=lease)
        self._events.put(event)

    def _publish_held(self, lease: Lease) -> None:
        self._events.put(BackendEvent(kind="lease_held", lease_id=lease.id, lease=lease))

    async def _on_change(self, change: PodChange) -> None:
        if change.kind == "pod" and change.pod is not None:
            self._note(change.pod)
        elif change.kind == "gone":
            if (pod := self._pods.get(change.lease_id)) is not None:
                self._lose(replace(pod.lease, state="lost", reason=change.reason))
            self._releasing.pop(change.lease_id, None)
        elif change.kind == "warning":
            if change.lease_id in self._pods and change.lease_id not in self._releasing:
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
        before = set(self._pods)
        found = {pod.lease.id: pod for pod in await self._cluster.pods()}
        for lease_id in before & self._pods.keys() - found.keys():
            reason = f"its {self._cluster.unit} is gone"
            self._lose(replace(self._pods[lease_id].lease, state="lost", reason=reason))
        for pod in found.values():
            self._note(pod)
        await self._reserve_again(pod for pod in found.values() if pod.lease.id not in before)

    async def _reserve_again(self, pods: Iterable[Pod]) -> None:
        """Wait, for `_ANSWERS_S` at most, until the agents of pods that were just found have noted their leases.

        Their agents may have started while no scheduler ran. An agent that does not answer may have a kernel: its lease
        stays held.
        """
        held = [pod.lease.id for pod in pods if pod.address is not None and pod.lease.state == "held"]
        if noting := [self._noting[lease_id] for lease_id in held if lease_id in self._noting]:
            await asyncio.wait(noting, timeout=_ANSWERS_S)
        self._starting.difference_update(held)

    def _note(self, pod: Pod) -> Pod:
        """Note a pod that the cluster reports, and publish the news about its lease."""
        lease = pod.lease
        if lease.id in self._releasing:  # a pod that ends still changes
            return pod
        known = self._pods.get(lease.id)
        if lease.state == "lost":
            self._lose(lease)
            return pod
        before = self._lease(known) if known is not None else None
        # A pod that another service is still creating may have been taken for lost.
        self._lost.pop(lease.id, None)
        self._pods[lease.id] = pod
        if known is None or known.lease.node_id != lease.node_id:
            self._redraw(lease.node_id, *([known.lease.node_id] if known else ()))
        if pod.address is None or known is None:
            self._starting.add(lease.id)
        if pod.address is not None and lease.id in self._starting and lease.id not in self._noting:
            self._noting[lease.id] = spawn(self._reserve(pod), self._tasks, log)
        now = self._lease(pod)
        if before is not None and now.state == "pending" and now.reason != before.reason:
            self._publish_reason(now)
        if now.state == "held" and lease.id in self._starting and (before is None or before.state != "held"):
            self._publish_held(now)
        return pod

    async def _reserve(self, pod: Pod) -> None:
        """Have the pod's agent note the lease, as soon as the agent listens. From then on the lease is held."""
        lease_id = pod.lease.id

        def is_wanted() -> bool:
            return lease_id in self._pods and lease_id in self._starting

        async def reserve() -> bool:
            lease = replace(self._pods[lease_id].lease, state="held", reason="")
            asked = Reserve(lease=lease, is_granted=True, linger_s=self._linger_s)
            try:
                await self._caller(pod).call(partial(AgentClient.reserve, request=asked))
            except RoostError as problem:
                log.debug("lease=%s its agent does not answer yet: %s", lease_id, problem)
                return False
            return True

        try:
            await until_listening(reserve, is_wanted)
        finally:
            self._noting.pop(lease_id, None)
        if is_wanted():
            self._starting.discard(lease_id)
            if self._pods[lease_id].kernel is None:
                self._publish_held(self._lease(self._pods[lease_id]))

    def _lease(self, pod: Pod) -> Lease:
        """Return the pod's lease as the scheduler sees it: held once its kernel listens, or the agent has noted it."""
        if pod.lease.state == "pending" and self._away and pod.kernel is None:
            return replace(pod.lease, reason=self._describe_away())
        if pod.lease.id in self._starting and pod.kernel is None:
            return replace(pod.lease, state="pending", reason=pod.lease.reason or _STARTING)
        return replace(pod.lease, state="held", reason="") if pod.address is not None else pod.lease

    def _lose(self, lost: Lease) -> None:
        """Record that a pod has ended.

        Publish the loss of its lease, unless this scheduler has released the lease.
        """
        if lost.id in self._pods and lost.id not in self._releasing:
            event = BackendEvent(kind="lease_lost", lease_id=lost.id, reason=lost.reason, lease=lost)
            self._events.put(event)
        self._forget(lost.id)
        if lost.id not in self._releasing:
            self._lost[lost.id] = lost

    def _forget(self, lease_id: str) -> None:
        self._starting.discard(lease_id)
        self._lost.pop(lease_id, None)
        if (pod := self._pods.pop(lease_id, None)) is not None:
            self._redraw(pod.lease.node_id)

    def _redraw(self, *node_ids: str) -> None:
        self._differs |= set(node_ids)
        self._events.put(BackendEvent(kind="nodes"))

    # The agents

    async def _wait_for_agent(self, pod: Pod) -> None:
        """If the pod has reported its kernel, wait for a short time until its agent answers too."""
        if pod.kernel is not None and (noting := self._noting.get(pod.lease.id)) is not None:
            await asyncio.wait([noting], timeout=_AGENT_S)

    def _caller(self, pod: Pod) -> AgentCaller:
        async def resolve() -> AgentAddress:
            known = self._pods.get(pod.lease.id)
            if known is None or known.address is None:
                return await self.agent(pod.lease)  # raises
            return known.address

        async def nothing(_: AgentAddress | None) -> None:
            return None

        return AgentCaller(
            self._agents, resolve, name=f"the agent of kernel {pod.lease.kernel_id}", on_lost=nothing
        )

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        is_release = event is not None and event.kind == "released" and event.lease_id in self._pods
        if is_release and event is not None and event.lease_id not in self._releasing:
            spawn(self._delete(event.lease_id), self._tasks, log)  # released by the agent's own rules

    async def _delete(self, lease_id: str) -> None:
        self._releasing[lease_id] = None
        if (creating := self._creating.get(lease_id)) is not None:
            await asyncio.wait([creating])
        await self._cluster.delete(lease_id)
        await self._read_nodes()  # a pod that ends keeps its resources for a while
        self._forget(lease_id)
