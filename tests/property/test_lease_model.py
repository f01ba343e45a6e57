"""The life of leases under any faults at any moment: services, agents and the manager may each die, wait or forget.

The scheduler, the book, the queue, the reconciler and the backend are the real ones. They run in virtual time against a
manager and agents in this process. Hypothesis chooses what happens, and a seed how long each message takes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from kit.fakes.cluster_manager import FakeManager, FakeNode
from kit.fakes.network import LinkedAgent, Network, Service
from kit.fakes.virtual_time import VirtualLoop
from roost.launchers.daemon.tasks import cancel_all
from roost.launchers.protocol import agent_client
from roost.launchers.protocol.messages import Connection, Launch, Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_kernel import AgentPerKernelBackend, Pod, PodChange, PodCluster
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent
from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings
from roost.scheduler.backends.base import Backend
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.queue import Queue
from roost.scheduler.core.scheduler import Scheduler
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError
from roost.scheduler.messages import Event, StartKernel
from roost.testing import FakeAgent, backend_context
from roost.testing.fake_backends import FakePodCluster

CPUS = 2.0
"""Each node has room for two of the largest requests, or for four of the smallest."""
NODES = ("a", "b")
KERNELS = tuple(f"k{number}" for number in range(6))
NAMES = ("s", "t")
"""The services. The next service of a name finds the leases of the one before."""
EXPIRES_S = 30.0
"""How long an agent keeps a lease without a kernel."""
ANSWERS_S = 30.0
"""How long the manager waits for an agent that hangs."""
SETTLES_S = 300.0
"""After this time without faults, all graces and retries are over."""
ME = Owner(
    user="ada", application="model", host="elsewhere", pid=1, process_started_at=1.0, pid_namespace="x"
)


class World(ABC):
    """The cluster, which outlives all services. While it `is_away`, no service reaches its manager."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.is_away = False

    @abstractmethod
    def open_backend(self, service: Service, agents: Agents, folder: Path) -> Backend:
        """Return a service's backend."""

    @abstractmethod
    def granted(self) -> dict[str, Lease]:
        """Return the leases that the manager has granted, or will grant."""

    @abstractmethod
    def take_back(self, lease_id: str) -> None:
        """Let the manager take a lease back, or forget it."""

    @abstractmethod
    def crash(self, agent: LinkedAgent) -> None:
        """End an agent."""

    @abstractmethod
    def agents(self) -> list[LinkedAgent]:
        """Return the agents that run, or will run again."""

    async def travel(self, service: Service) -> None:
        """Wait until a message between a service and the manager has arrived."""
        await self.network.travel()
        if service.is_dead or self.is_away:
            raise BackendUnavailable("it is away")


class Nodes(World):
    """A cluster with one agent on each node."""

    def __init__(self, network: Network, folder: Path) -> None:
        super().__init__(network, folder)
        self.claims: dict[str, Lease] = {}
        for name in NODES:
            LinkedAgent(folder / name, name=name, cpus=CPUS).join(network, name)

    def open_backend(self, service: Service, agents: Agents, folder: Path) -> Backend:
        settings = AgentPerNodeSettings(manager_grace_s=60.0)
        manager = ModelManager(service, self)
        return AgentPerNodeBackend(
            "fake",
            manager,
            settings.agent_settings(),
            backend_context(agents, folder),
            grace_s=settings.manager_grace_s,
        )

    def granted(self) -> dict[str, Lease]:
        return self.claims

    def take_back(self, lease_id: str) -> None:
        del self.claims[lease_id]

    def crash(self, agent: LinkedAgent) -> None:
        agent.crash()

    def agents(self) -> list[LinkedAgent]:
        return list(self.network.agents.values())

    def free_on(self, node_id: str) -> float:
        return CPUS - sum(each.request.cpus for each in self.claims.values() if each.node_id == node_id)


class ModelManager(FakeManager):
    """One service's view of the manager. Each call takes a while to arrive, and so does its answer."""

    def __init__(self, service: Service, world: Nodes) -> None:
        super().__init__()
        self.agents = dict(service.network.agents)
        self._service = service
        self._world = world
        self.granted = world.claims

    async def wait_for_change(self) -> None:
        await asyncio.sleep(0.5)

    async def claim(
        self, lease: Lease, node: FakeNode, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        await self._travel()
        has_room_now = self._world.free_on(node.id) >= lease.request.cpus
        if lease.id in self.granted or has_room_now:
            self.granted.setdefault(lease.id, replace(lease, state="held", reason=""))
        await self._travel()
        if not has_room_now and lease.id not in self.granted:
            raise LeaseConflict(f"{node.id} is full")
        return ()

    async def release(self, lease: Lease) -> None:
        await self._travel()
        self.granted.pop(lease.id, None)
        await self._travel()

    async def claims(self) -> Sequence[Lease]:
        await self._travel()
        found = list(self.granted.values())
        await self._travel()
        return found

    async def find(self, lease: Lease) -> bool:
        await self._travel()
        found = lease.id in self.granted
        await self._travel()
        return found

    async def start_agent(self, node_id: str) -> StartedAgent:
        await self._travel()
        agent = self._service.network.agents[node_id]
        await asyncio.sleep(min(agent.hangs_s, ANSWERS_S))
        if agent.hangs_s:
            raise BackendUnavailable(f"no agent has answered on {node_id}")
        agent.revive()
        await self._travel()
        return StartedAgent(address=self._service.address(agent), daemon="1")

    def build_node(self, node: FakeNode, status: Node | None) -> Node:
        promised = CPUS - self._world.free_on(node.id)
        return replace(super().build_node(node, status), cpus=CPUS, cpus_promised=promised)

    async def _travel(self) -> None:
        await self._world.travel(self._service)

    async def _join(self, address: str) -> str:
        await self._travel()
        return "fake:1"

    async def _fetch(self) -> Iterable[FakeNode]:
        await self._travel()
        return [FakeNode(id=name) for name in self.agents]


class Pods(World):
    """A cluster with one agent in each pod. A pod is pending for a while, and its agent ends with it."""

    def __init__(self, network: Network, folder: Path) -> None:
        super().__init__(network, folder)
        self.cluster = LinkedPods(self, folder, [Node(id=name, cpus=CPUS) for name in NODES])

    def open_backend(self, service: Service, agents: Agents, folder: Path) -> Backend:
        return AgentPerKernelBackend(ModelPods(service, self), agents, linger_s=10.0)

    def granted(self) -> dict[str, Lease]:
        return {lease_id: pod.lease for lease_id, pod in self.cluster.all().items()}

    def take_back(self, lease_id: str) -> None:
        self.cluster.evict(lease_id)

    def crash(self, agent: LinkedAgent) -> None:
        self.cluster.evict(self.cluster.lease_of(agent))

    def agents(self) -> list[LinkedAgent]:
        return [agent for agent in self.cluster.agents.values() if isinstance(agent, LinkedAgent)]


class LinkedPods(FakePodCluster):
    """The pods, with agents that have no sockets."""

    def __init__(self, world: Pods, folder: Path, nodes: Sequence[Node]) -> None:
        super().__init__(folder, nodes, pending_reason="its image is being pulled")
        self._world = world
        self.made: dict[str, LinkedAgent] = {}
        """The latest agent of each lease, also if it has ended."""
        self._expiring: dict[str, asyncio.Task[None]] = {}

    def make_agent(self, lease_id: str, node_id: str) -> FakeAgent:
        number = next(self._numbers)
        agent = LinkedAgent(self._folder / f"pod-{number}", name=node_id, cpus=CPUS)
        agent.join(self._world.network, f"pod-{number}")
        give_back = agent.give_back

        def end(lease_id: str) -> None:
            """Give the lease back, and end the pod with its first process, the agent."""
            give_back(lease_id)
            if lease_id in self._pods:
                asyncio.get_running_loop().call_soon(self.evict, lease_id)

        agent.give_back = end  # type: ignore[method-assign]
        self.made[lease_id] = agent
        self._expiring[lease_id] = asyncio.get_running_loop().create_task(agent.expire(EXPIRES_S))
        return agent

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        is_new = lease.id not in self._pods
        pod = await super().create(lease, launch)
        if is_new:
            asyncio.get_running_loop().call_later(self._world.network.delay_s(), self._grant_soon, lease.id)
        return pod

    def _grant_soon(self, lease_id: str) -> None:
        if lease_id in self._pods:
            self.grant(lease_id)

    def all(self) -> dict[str, Pod]:
        return self._pods

    def lease_of(self, agent: LinkedAgent) -> str:
        return next(lease_id for lease_id, each in self.agents.items() if each is agent)

    def evict(self, lease_id: str) -> None:
        if (pod := self._pods.pop(lease_id, None)) is None:
            return
        lost = replace(pod.lease, state="lost", reason="it was evicted")
        self._report(PodChange(kind="pod", pod=replace(pod, lease=lost)))
        self._end_agent(lease_id)

    async def _close_agent(self, lease_id: str) -> None:
        self._end_agent(lease_id)

    def _end_agent(self, lease_id: str) -> None:
        agent = self.agents.pop(lease_id, None)
        if isinstance(agent, LinkedAgent):
            agent.crash()
            self._expiring.pop(lease_id).cancel()


class ModelPods(PodCluster):
    """One service's view of the pods. Each call takes a while to arrive, and so does its answer, or a change."""

    name = "fake_pods"

    def __init__(self, service: Service, world: Pods) -> None:
        self._service = service
        self._world = world
        self._cluster = world.cluster

    async def join(self) -> str:
        await self._travel()
        return "fake:1"

    async def close(self) -> None: ...

    async def nodes(self) -> Sequence[Node]:
        await self._travel()
        return await self._cluster.nodes()

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        await self._travel()
        pod = await self._cluster.create(lease, launch)
        await self._travel()
        return self._see(pod)

    async def delete(self, lease_id: str) -> None:
        await self._travel()
        await self._cluster.delete(lease_id)
        await self._travel()

    async def update(self, lease: Lease) -> None:
        await self._travel()
        await self._cluster.update(lease)

    async def pods(self) -> Sequence[Pod]:
        await self._travel()
        found = await self._cluster.pods()
        await self._travel()
        return [self._see(pod) for pod in found if pod.lease.id not in self.creating]

    async def changes(self) -> AsyncIterator[PodChange]:
        async for change in self._cluster.changes():
            await self._travel()
            lease_id = change.pod.lease.id if change.pod is not None else change.lease_id
            if not lease_id or lease_id not in self.creating:
                yield replace(change, pod=self._see(change.pod) if change.pod is not None else None)

    async def _travel(self) -> None:
        await self._world.travel(self._service)

    def _see(self, pod: Pod) -> Pod:
        if pod.address is None:
            return pod
        return replace(pod, address=self._service.address(self._cluster.made[pod.lease.id]))


class RunningModel:
    """One service: a scheduler on its backend, until it is closed or killed."""

    def __init__(self, world: World, name: str) -> None:
        self.service = Service(world.network, name)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.events: list[Event] = []
        folder = world.folder / f"service-{name}"
        folder.mkdir(exist_ok=True)
        agents = Agents()
        backend = world.open_backend(self.service, agents, folder)
        self.scheduler = Scheduler(backend, agents, Settings(restart_grace_s=10.0), name=name)
        self.scheduler.events.listen(self.events.append)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a client's call. Its errors are the client's."""

        async def run() -> None:
            try:
                await work
            except RoostError:
                pass

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        return task

    async def start(self, kernel_id: str, launch_id: str, cpus: float) -> None:
        await self.scheduler.start(
            StartKernel(
                kernel_id=kernel_id,
                launch_id=launch_id,
                request=Request(cpus=cpus),
                owner=ME,
                argv=("python", "-m", "ipykernel_launcher"),
                env={},
                cwd="/",
                connection=Connection(key="secret"),
                queue_timeout_s=20.0,
                launch_timeout_s=20.0,
            )
        )


class Errors(logging.Handler):
    """Collects what roost logs as an error: no fault may surprise it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "is not released yet" not in record.getMessage():  # the manager was away
            self.found.append(self.format(record))


class Leases(RuleBasedStateMachine):
    """What can happen to kernels and leases on two nodes, under two services."""

    kind: type[World]

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="roost-model-"))
        self.dice = random.Random(seed)
        self.loop = VirtualLoop()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(time, "monotonic", self.loop.time)
        self.patch.setitem(cast(Any, Queue.__init__).__kwdefaults__, "clock", self.loop.time)
        self.network = Network(self.dice)
        self.patch.setattr(agent_client, "RpcClient", self.network.open)
        self.errors = Errors()
        logging.getLogger("roost").addHandler(self.errors)
        self.world = self.kind(self.network, self.folder)
        self.expiring = [self.loop.create_task(agent.expire(EXPIRES_S)) for agent in self.world.agents()]
        self.services: dict[str, RunningModel] = {}
        self.launches = Counter[str]()
        self.took_back_at = 0.0
        """When a lease was last taken back: its kernel may then run beside the next holder's for a while."""
        for name in NAMES:
            self.run(self.open(name))

    # The world

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)
        self.check_slices()
        assert not self.errors.found, "\n".join(self.errors.found)

    async def open(self, name: str) -> None:
        """Open a service, as often as it takes: its client tries again while the manager is away."""
        while name not in self.services:
            service = RunningModel(self.world, name)
            try:
                await service.scheduler.open()
            except BackendUnavailable:
                await service.scheduler.close()
                await asyncio.sleep(1.0)
            else:
                self.services[name] = service

    async def kill(self, name: str) -> None:
        """End a service as SIGKILL does: nothing that it still does has an effect."""
        service = self.services.pop(name)
        service.service.kill()
        await asyncio.wait_for(service.scheduler.close(), 600.0)
        for task in service.tasks:
            task.cancel()
        await asyncio.gather(*service.tasks, return_exceptions=True)

    def check_slices(self) -> None:
        """No slice is given twice."""
        granted, used = Counter[str](), Counter[str]()
        for lease in self.world.granted().values():
            granted[lease.node_id] += lease.request.cpus
        for agent in self.world.agents():
            for entry in agent.ledger.entries():
                kernel = agent.kernels.get(entry.lease.kernel_id)
                if kernel is not None and kernel.is_running:
                    used[agent.name] += entry.lease.request.cpus
        assert max(granted.values(), default=0) <= CPUS, granted
        if self.loop.now - self.took_back_at > SETTLES_S:
            assert max(used.values(), default=0) <= CPUS, used

    # What clients do

    def pick(self, name: str) -> RunningModel | None:
        return self.services.get(name)

    @rule(
        name=st.sampled_from(NAMES),
        kernel_ids=st.lists(st.sampled_from(KERNELS), min_size=1, max_size=4, unique=True),
        cpus=st.sampled_from([0.5, 1.0]),
    )
    def start(self, name: str, kernel_ids: list[str], cpus: float) -> None:
        for kernel_id in kernel_ids:
            if (service := self.pick(name)) is not None:
                self.launches[kernel_id] += 1
                work = service.start(f"{name}-{kernel_id}", str(self.launches[kernel_id]), cpus)
                self.run(self.briefly(service, work))

    @rule(name=st.sampled_from(NAMES), kernel_id=st.sampled_from(KERNELS))
    def cancel(self, name: str, kernel_id: str) -> None:
        if (service := self.pick(name)) is not None:
            self.run(self.briefly(service, service.scheduler.cancel(f"{name}-{kernel_id}")))

    @rule(name=st.sampled_from(NAMES), kernel_id=st.sampled_from(KERNELS))
    def stop(self, name: str, kernel_id: str) -> None:
        if (service := self.pick(name)) is not None:
            self.run(self.briefly(service, service.scheduler.stop(f"{name}-{kernel_id}", 0.0)))

    async def briefly(self, service: RunningModel, work: Coroutine[Any, Any, Any]) -> None:
        service.spawn(work)
        await asyncio.sleep(self.network.delay_s())

    # What happens

    def agent(self, number: int) -> LinkedAgent | None:
        agents = self.world.agents()
        return agents[number % len(agents)] if agents else None

    @rule(at=st.integers(0, 5), number=st.integers(0, 5))
    def kernel_ends(self, at: int, number: int) -> None:
        if (agent := self.agent(at)) is not None:
            running = [kernel.kernel_id for kernel in agent.kernels.values() if kernel.is_running]
            if agent.is_up and not self.loop.now < agent.goes_on_at and running:
                self.run(self.act(lambda: agent.end(running[number % len(running)])))

    @rule(at=st.integers(0, 5))
    def agent_crashes(self, at: int) -> None:
        if (agent := self.agent(at)) is not None:
            self.run(self.act(lambda: self.world.crash(agent)))

    @rule(at=st.integers(0, 5), seconds=st.sampled_from([1.0, 12.0, 45.0, 120.0]))
    def agent_hangs(self, at: int, seconds: float) -> None:
        if (agent := self.agent(at)) is not None and agent.is_up:
            self.run(self.act(lambda: agent.hang(seconds)))

    @rule(at=st.integers(0, 5))
    def connections_break(self, at: int) -> None:
        if (agent := self.agent(at)) is not None:
            self.run(self.act(lambda: self.network.cut(agent)))

    @rule(seconds=st.sampled_from([0.1, 3.0, 30.0]))
    def manager_leaves(self, seconds: float) -> None:
        def come_back() -> None:
            self.world.is_away = False

        self.world.is_away = True
        self.loop.call_later(seconds, come_back)

    @rule(number=st.integers(0, 5))
    def lease_is_taken_back(self, number: int) -> None:
        if granted := list(self.world.granted()):
            self.took_back_at = self.loop.now
            self.run(self.act(lambda: self.world.take_back(granted[number % len(granted)])))

    @rule(name=st.sampled_from(NAMES))
    def service_dies(self, name: str) -> None:
        if name in self.services:
            self.run(self.kill(name))

    @rule(name=st.sampled_from(NAMES))
    def service_opens(self, name: str) -> None:
        if name not in self.services:
            self.run(self.open(name))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 3.0, 30.0, 120.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    async def act(self, deed: Any) -> None:
        deed()
        await asyncio.sleep(self.network.delay_s())

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.world.is_away = False
            self.run(self.settle())
        finally:
            logging.getLogger("roost").removeHandler(self.errors)
            self.loop.run_until_complete(cancel_all(asyncio.all_tasks(self.loop)))
            self.patch.undo()
            self.loop.close()
            shutil.rmtree(self.folder)

    async def settle(self) -> None:
        for name in NAMES:
            await self.open(name)
        for agent in self.world.agents():
            agent.revive()
        await asyncio.sleep(SETTLES_S)
        for service in self.services.values():
            assert all(task.done() for task in service.tasks), "a client waits for ever"
        self.check_agreement(self.services.values())
        for service in self.services.values():
            for kernel in service.scheduler.kernels():
                await service.scheduler.stop(kernel.id, 0.0)
        await asyncio.sleep(60.0)
        assert self.world.granted() == {}
        assert [agent.held_leases() for agent in self.world.agents() if agent.held_leases()] == []
        for name in NAMES:
            await self.kill(name)

    def check_agreement(self, services: Collection[RunningModel]) -> None:
        """No kernel without a lease, no lease without a kernel, on all three sides."""
        kernels = {kernel.lease_id: kernel for each in services for kernel in each.scheduler.kernels()}
        agents = self.world.agents()
        noted = {lease_id for agent in agents for lease_id in agent.held_leases()}
        on_nodes = [kernel for agent in agents for kernel in agent.kernels.values() if kernel.is_running]
        running = {kernel.lease_id for kernel in on_nodes}
        sides = set(kernels), set(self.world.granted()), noted, running
        assert sides[0] == sides[1] == sides[2], sides
        assert running == {lease_id for lease_id, kernel in kernels.items() if kernel.state == "running"}


class LeasesOnNodes(Leases):
    kind = Nodes


class LeasesInPods(Leases):
    kind = Pods


@pytest.mark.parametrize("machine", [LeasesOnNodes, LeasesInPods])
def test_leases_and_kernels_agree_after_any_faults(machine: type[Leases]) -> None:
    """The same 100 cases each time. `ROOST_ROUNDS=100` tries a hundred times as many, and others each time."""
    rounds = int(os.environ.get("ROOST_ROUNDS", "0"))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100 * max(1, rounds),
            derandomize=not rounds,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_pod_may_end_before_its_agent_is_asked() -> None:
    """The fault in which this was found."""
    state = LeasesInPods()
    state.begin(seed=723)
    state.start(cpus=0.5, kernel_ids=["k0", "k1", "k2", "k3"], name="s")
    state.start(cpus=0.5, kernel_ids=["k0"], name="s")
    state.agent_crashes(at=0)
    state.teardown()


def test_a_kernel_may_be_restarted_while_its_lease_is_pending_again() -> None:
    """Its pod's agent had crashed. This too was found so."""
    state = LeasesInPods()
    state.begin(seed=16468644)
    state.agent_crashes(at=0)
    state.agent_crashes(at=0)
    state.start(cpus=1.0, kernel_ids=["k2", "k4"], name="s")
    for _ in range(4):
        state.agent_crashes(at=0)
    state.start(cpus=1.0, kernel_ids=["k1", "k5", "k4", "k3"], name="s")
    state.agent_crashes(at=1)
    state.start(cpus=0.5, kernel_ids=["k1", "k4", "k2", "k5"], name="s")
    state.start(cpus=1.0, kernel_ids=["k0", "k5", "k1", "k4"], name="s")
    state.kernel_ends(at=3, number=5)
    state.agent_crashes(at=3)
    state.kernel_ends(at=0, number=4)
    state.kernel_ends(at=0, number=3)
    state.start(cpus=0.5, kernel_ids=["k4", "k5", "k0", "k2"], name="s")
    state.agent_crashes(at=0)
    state.start(cpus=1.0, kernel_ids=["k5"], name="s")
    state.agent_crashes(at=1)
    state.start(cpus=0.5, kernel_ids=["k0", "k2"], name="t")
    state.kernel_ends(at=4, number=5)
    state.agent_crashes(at=3)
    state.start(cpus=1.0, kernel_ids=["k4"], name="s")
    state.teardown()


def test_an_answer_from_before_a_restart_may_come_after_it() -> None:
    """It says that the kernel has ended, which is not true any more. This too was found so."""
    state = LeasesOnNodes()
    state.begin(seed=8060284)
    state.agent_crashes(at=0)
    state.start(cpus=0.5, kernel_ids=["k0"], name="s")
    for _ in range(3):
        state.agent_crashes(at=0)
    state.start(cpus=1.0, kernel_ids=["k0", "k1", "k2", "k3"], name="t")
    for _ in range(10):
        state.agent_crashes(at=0)
    state.kernel_ends(at=0, number=0)
    state.start(cpus=0.5, kernel_ids=["k0", "k1", "k2", "k3"], name="s")
    state.agent_crashes(at=1)
    state.kernel_ends(at=0, number=0)
    for _ in range(5):
        state.agent_crashes(at=0)
    state.start(cpus=0.5, kernel_ids=["k0"], name="t")
    state.teardown()


def test_the_manager_may_leave_again_while_its_leases_are_claimed_again() -> None:
    """The agent hung all the time. A claim without a kernel was left, because no reading followed. Found so."""
    state = LeasesOnNodes()
    state.begin(seed=88553358)
    state.connections_break(at=0)
    state.lease_is_taken_back(number=0)
    state.lease_is_taken_back(number=0)
    state.lease_is_taken_back(number=0)
    state.connections_break(at=0)
    state.start(cpus=0.5, kernel_ids=["k0"], name="s")
    state.agent_hangs(at=5, seconds=1.0)
    state.start(cpus=0.5, kernel_ids=["k1", "k0", "k2", "k3"], name="t")
    state.manager_leaves(seconds=3.0)
    state.stop(kernel_id="k1", name="t")
    state.service_opens(name="s")
    state.connections_break(at=0)
    state.start(cpus=0.5, kernel_ids=["k0", "k1"], name="s")
    state.service_dies(name="s")
    state.manager_leaves(seconds=30.0)
    state.service_opens(name="s")
    state.connections_break(at=0)
    state.service_dies(name="t")
    state.service_opens(name="s")
    state.connections_break(at=0)
    state.service_opens(name="t")
    state.manager_leaves(seconds=3.0)
    state.agent_hangs(at=2, seconds=120.0)
    state.connections_break(at=2)
    state.start(cpus=1.0, kernel_ids=["k1"], name="s")
    state.cancel(kernel_id="k0", name="s")
    state.manager_leaves(seconds=30.0)
    state.connections_break(at=5)
    state.teardown()


def test_an_agent_may_hang_for_longer_than_its_node_is_expected_back() -> None:
    """The manager had forgotten its claims, and nobody asked the agent for its leases any more. Found so."""
    state = LeasesOnNodes()
    state.begin(seed=173127)
    state.start(cpus=0.5, kernel_ids=["k0", "k1"], name="s")
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.lease_is_taken_back(number=0)
    state.lease_is_taken_back(number=0)
    state.start(cpus=0.5, kernel_ids=["k0", "k1", "k2", "k3"], name="t")
    state.connections_break(at=0)
    state.time_passes(seconds=30.0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.time_passes(seconds=0.0)
    state.lease_is_taken_back(number=0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.agent_hangs(at=0, seconds=120.0)
    state.connections_break(at=0)
    state.lease_is_taken_back(number=0)
    state.start(cpus=0.5, kernel_ids=["k0", "k1"], name="s")
    state.connections_break(at=0)
    state.service_dies(name="t")
    state.time_passes(seconds=3.0)
    state.lease_is_taken_back(number=4)
    state.agent_hangs(at=0, seconds=45.0)
    state.time_passes(seconds=30.0)
    state.time_passes(seconds=0.01)
    state.kernel_ends(at=2, number=3)
    state.lease_is_taken_back(number=2)
    state.teardown()


def test_a_lease_may_be_lost_while_its_agent_hangs() -> None:
    """The next reading did not show it, and its kernel's end was not tried again. Found so."""
    state = LeasesOnNodes()
    state.begin(seed=173127)
    state.start(cpus=0.5, kernel_ids=["k0"], name="s")
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.lease_is_taken_back(number=0)
    state.lease_is_taken_back(number=0)
    state.start(cpus=0.5, kernel_ids=["k0", "k1", "k2"], name="s")
    state.connections_break(at=1)
    state.time_passes(seconds=30.0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.manager_leaves(seconds=0.1)
    state.lease_is_taken_back(number=0)
    state.connections_break(at=1)
    state.agent_hangs(at=0, seconds=120.0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.connections_break(at=0)
    state.lease_is_taken_back(number=0)
    state.teardown()
