"""A backend of each shape (agent per node, agent per kernel) over fake agents, for tests of the scheduler."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Launch
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Node, NodeType, Snapshot
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_kernel import (
    AgentPerKernelBackend,
    Pod,
    PodChange,
    PodCluster,
    PodGrowth,
)
from roost.scheduler.backends.base import AgentAddress, Backend, BackendEvent, Lease, LeaseReading
from roost.scheduler.backends.local.backend import LocalBackend
from roost.scheduler.backends.local.settings import RoostLocalBackend
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, UnknownKernel

from .contexts import backend_context
from .fake_agent import FakeAgent


def local_backend(
    agent: FakeAgent, settings: Settings, agents: Agents, local: RoostLocalBackend | None = None
) -> LocalBackend:
    """Return the real local backend, over a fake agent."""

    async def find(_: AgentSettings) -> tuple[str, ClientKeys]:
        return agent.address.endpoint, agent.address.keys

    context = backend_context(agents, agent.folder, settings)
    return LocalBackend(local or RoostLocalBackend(), context, find_agent=find)


class FakeBackend(Backend):
    """Several nodes with one agent each: a `LocalBackend` over a fake agent for every node.

    `lies` maps a node id to a function that changes the node in each snapshot, so that a placement there conflicts.
    """

    name = "fake"

    def __init__(
        self,
        fakes: list[FakeAgent],
        settings: Settings,
        agents: Agents,
        local: RoostLocalBackend | None = None,
    ) -> None:
        self._parts = {fake.name: local_backend(fake, settings, agents, local) for fake in fakes}
        for part in self._parts.values():
            part.book = self.book
        self.lies: dict[str, Callable[[Node], Node]] = {}

    async def open(self) -> None:
        for part in self._parts.values():
            await part.open()

    async def close(self) -> None:
        for part in self._parts.values():
            await part.close()

    async def snapshot(self) -> Snapshot:
        pictures = {name: await part.snapshot() for name, part in self._parts.items()}
        nodes = [picture.node(name) for name, picture in pictures.items()]
        return Snapshot.of([self.lies.get(node.id, lambda same: same)(node) for node in nodes])

    async def events(self) -> AsyncIterator[BackendEvent]:
        events: asyncio.Queue[BackendEvent] = asyncio.Queue()

        async def read(part: LocalBackend) -> None:
            async for event in part.events():
                events.put_nowait(event)

        tasks = [asyncio.ensure_future(read(part)) for part in self._parts.values()]
        try:
            while True:
                yield await events.get()
        finally:
            for task in tasks:
                task.cancel()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        return await self._parts[lease.node_id].claim(lease, launch)

    async def release(self, lease: Lease) -> None:
        await self._parts[lease.node_id].release(lease)

    async def leases(self) -> LeaseReading:
        readings = [await part.leases() for part in self._parts.values()]
        return LeaseReading(
            leases=tuple(lease for reading in readings for lease in reading.leases),
            processes={key: process for reading in readings for key, process in reading.processes.items()},
        )

    async def agent(self, lease: Lease) -> AgentAddress:
        if lease.node_id not in self._parts:
            raise UnknownKernel("its node has left the cluster", kernel_id=lease.kernel_id)
        return await self._parts[lease.node_id].agent(lease)

    async def warm_up(self) -> int:
        return len(self._parts)


class FakePodCluster(PodCluster):
    """A cluster of pods in this process, each with a fake agent. The cluster outlives its backends, as a real one does.

    New pods are pending with `pending_reason` until `grant` or `grant_all`; an empty reason grants them at once. While
    `quota_reason` is set, every pod is refused. With `adds_nodes`, a pod without a node waits for `add_node`.
    `node_types` are the kinds of nodes that it could start.
    From `leave` on, the cluster is away until `away_reason` is empty.
    """

    name = "fake_pods"

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[Node],
        *,
        pending_reason: str = "",
        adds_nodes: bool = False,
        node_types: Sequence[NodeType] = (),
    ) -> None:
        self.pending_reason = pending_reason
        self.quota_reason = ""
        self.away_reason = ""
        self.end_reasons: dict[str, str] = {}
        """The reasons why pods ended, by lease id. The backend reads them for the scheduler."""
        self.adds_nodes = adds_nodes
        self.node_types = node_types
        self.agents: dict[str, FakeAgent] = {}
        self._folder = folder
        self._nodes = {node.id: node for node in nodes}
        self._pods: dict[str, Pod] = {}
        self._numbers = itertools.count()
        self._watches: list[asyncio.Queue[PodChange | None]] = []

    async def join(self) -> str:
        if self.away_reason:
            raise BackendUnavailable(self.away_reason)
        return "in this process"

    async def close(self) -> None:
        return None

    async def nodes(self) -> Sequence[Node]:
        return list(self._nodes.values())

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        if lease.id in self._pods:
            return self._pods[lease.id]
        if self.quota_reason:
            raise LeaseConflict(self.quota_reason, is_everywhere=True)
        if not lease.node_id:
            return self._put(Pod(lease=replace(lease, state="pending", reason="no node has room yet")))
        node = self._nodes[lease.node_id]
        for pod in self._pods.values():
            if pod.lease.node_id == node.id:
                node = node.with_kernel(pod.lease.request, pod.lease.device_ids)
        devices = tuple(device.id for device in node.fitting_devices(lease.request))[
            : lease.request.gpu_count
        ]
        is_short = lease.request.cpus > node.cpus_free + 1e-6 or len(devices) < lease.request.gpu_count
        if is_short or lease.request.memory_bytes > node.memory_free_bytes:
            raise LeaseConflict(f"{node.id} has no room")
        state = "pending" if self.pending_reason else "held"
        lease = replace(lease, device_ids=devices, state=state, reason=self.pending_reason)
        pod = self._put(Pod(lease=lease))
        return pod if self.pending_reason else self.grant(lease.id)

    def grant(self, lease_id: str) -> Pod:
        """Grant a pending pod: its agent listens from now on."""
        pod = self._pods[lease_id]
        agent = self.agents[lease_id] = self.make_agent(lease_id, pod.lease.node_id)
        return self._put(Pod(lease=replace(pod.lease, state="held", reason=""), address=agent.address))

    def make_agent(self, lease_id: str, node_id: str) -> FakeAgent:
        """Return the agent of a new pod."""
        return FakeAgent(self._folder / f"pod-{next(self._numbers)}", name=node_id)

    def add_node(self, node: Node) -> None:
        """Add a node, and grant the pods that have none."""
        self._nodes[node.id] = node
        self._report(PodChange(kind="nodes"))
        for lease_id, pod in list(self._pods.items()):
            if not pod.lease.node_id:
                self._pods[lease_id] = replace(pod, lease=replace(pod.lease, node_id=node.id))
                self.grant(lease_id)

    def grant_all(self) -> None:
        """Grant all pending pods."""
        for lease_id in [name for name, pod in self._pods.items() if pod.lease.state == "pending"]:
            self.grant(lease_id)

    def explain(self, lease_id: str, reason: str) -> None:
        """Change the reason for which a pending pod waits."""
        pod = self._pods[lease_id]
        self._put(replace(pod, lease=replace(pod.lease, reason=reason)))

    def warn(self, lease_id: str, reason: str) -> None:
        """Report that a pod will end soon."""
        self._report(PodChange(kind="warning", lease_id=lease_id, reason=reason))

    def leave(self, reason: str) -> None:
        """Let the cluster be `away` for this reason. Its pods continue to run."""
        self.away_reason = reason
        self._report(None)

    async def end(self, lease_id: str, reason: str, *, is_final: bool = False) -> None:
        """End a pod without roost's doing: it is evicted, deleted by hand, or can never start."""
        pod = self._pods.pop(lease_id)
        lost = replace(pod.lease, state="lost", reason=reason, is_final=is_final)
        self._report(PodChange(kind="pod", pod=replace(pod, lease=lost)))
        await self._close_agent(lease_id)

    async def forget(self, lease_id: str) -> None:
        """Lose a pod without a report of it."""
        del self._pods[lease_id]
        await self._close_agent(lease_id)

    async def delete(self, lease_id: str) -> None:
        if self._pods.pop(lease_id, None) is not None:
            self._report(PodChange(kind="gone", lease_id=lease_id, reason="it was deleted"))
            await self._close_agent(lease_id)

    async def explain_end(self, lease_id: str) -> str:
        return self.end_reasons.get(lease_id, "")

    async def pods(self) -> Sequence[Pod]:
        return list(self._pods.values())

    async def changes(self) -> AsyncIterator[PodChange]:
        watch: asyncio.Queue[PodChange | None] = asyncio.Queue()
        self._watches.append(watch)
        try:
            yield PodChange(kind="resync")
            while (change := await watch.get()) is not None:
                yield change
            raise BackendUnavailable(self.away_reason)
        finally:
            self._watches.remove(watch)

    def environment(self, lease: Lease) -> Mapping[str, str]:
        return {"FAKE_POD": lease.id}

    async def shut_down(self) -> None:
        """Close all agents, at the end of a test."""
        for lease_id in list(self.agents):
            await self._close_agent(lease_id)

    def _put(self, pod: Pod) -> Pod:
        self._pods[pod.lease.id] = pod
        self._report(PodChange(kind="pod", pod=pod))
        return pod

    def _report(self, change: PodChange | None) -> None:
        for watch in self._watches:
            watch.put_nowait(change)

    async def _close_agent(self, lease_id: str) -> None:
        if lease_id in self.agents:
            await self.agents.pop(lease_id).close()


def pod_backend(cluster: FakePodCluster, agents: Agents) -> AgentPerKernelBackend:
    """Return a backend over a cluster of fake pods."""
    growth = PodGrowth(cluster.node_types) if cluster.adds_nodes else Backend.growth
    return AgentPerKernelBackend(cluster, agents, linger_s=10.0, growth=growth)
