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
from collections import Counter
from collections.abc import Collection, Coroutine, Iterable, Sequence
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
from roost.launchers.protocol.messages import Connection, Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent
from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.queue import Queue
from roost.scheduler.core.scheduler import Scheduler
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError
from roost.scheduler.messages import Event, StartKernel
from roost.testing import backend_context

CPUS = 2.0
"""Each node has room for two of the largest requests, or for four of the smallest."""
NODES = ("a", "b")
KERNELS = tuple(f"k{number}" for number in range(6))
NAMES = ("s", "t")
"""The services. The next service of a name finds the leases of the one before."""
EXPIRES_S = 30.0
"""How long an agent keeps a lease without a kernel."""
SETTLES_S = 300.0
"""After this time without faults, all graces and retries are over."""
ME = Owner(
    user="ada", application="model", host="elsewhere", pid=1, process_started_at=1.0, pid_namespace="x"
)


class Ledger:
    """What the manager has granted, to all services: it outlives them."""

    def __init__(self) -> None:
        self.granted: dict[str, Lease] = {}
        self.is_away = False

    def free_on(self, node_id: str) -> float:
        return CPUS - sum(each.request.cpus for each in self.granted.values() if each.node_id == node_id)


class ModelManager(FakeManager):
    """One service's view of the manager. Each call takes a while to arrive, and so does its answer."""

    def __init__(self, service: Service, ledger: Ledger) -> None:
        super().__init__(*service.network.agents.values())
        self.granted = ledger.granted
        self._service = service
        self._ledger = ledger

    async def wait_for_change(self) -> None:
        await asyncio.sleep(0.5)

    async def claim(
        self, lease: Lease, node: FakeNode, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        await self._arrive()
        if lease.id not in self.granted:
            if self._ledger.free_on(node.id) < lease.request.cpus:
                await self._answer()
                raise LeaseConflict(f"{node.id} is full")
            self.granted[lease.id] = replace(lease, state="held", reason="")
        await self._answer()
        return ()

    async def release(self, lease: Lease) -> None:
        await self._arrive()
        self.granted.pop(lease.id, None)
        await self._answer()

    async def claims(self) -> Sequence[Lease]:
        await self._arrive()
        found = list(self.granted.values())
        await self._answer()
        return found

    async def find(self, lease: Lease) -> bool:
        await self._arrive()
        found = lease.id in self.granted
        await self._answer()
        return found

    async def start_agent(self, node_id: str) -> StartedAgent:
        await self._arrive()
        agent = self._service.network.agents[node_id]
        agent.revive()
        await self._answer()
        return StartedAgent(address=self._service.address(agent), daemon="1")

    def build_node(self, node: FakeNode, status: Node | None) -> Node:
        promised = CPUS - self._ledger.free_on(node.id)
        return replace(super().build_node(node, status), cpus=CPUS, cpus_promised=promised)

    async def _arrive(self) -> None:
        await self._service.network.travel()
        self._check()

    async def _answer(self) -> None:
        await self._service.network.travel()
        self._check()

    def _check(self) -> None:
        if self._service.is_dead or self._ledger.is_away:
            raise BackendUnavailable("it is away")

    async def _join(self, address: str) -> str:
        await self._arrive()
        return "fake:1"

    async def _fetch(self) -> Iterable[FakeNode]:
        await self._arrive()
        return [FakeNode(id=name) for name in self.agents]


class RunningModel:
    """One service: a scheduler on its backend, until it is closed or killed."""

    def __init__(self, network: Network, ledger: Ledger, folder: Path, name: str) -> None:
        self.service = Service(network, name)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.events: list[Event] = []
        folder.mkdir(exist_ok=True)
        agents = Agents()
        context = backend_context(agents, folder)
        own = AgentPerNodeSettings(manager_grace_s=60.0)
        self.backend = AgentPerNodeBackend("fake", ModelManager(self.service, ledger), own, context)
        self.scheduler = Scheduler(self.backend, agents, Settings(restart_grace_s=10.0), name=name)
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
        self.ledger = Ledger()
        self.expiring: list[asyncio.Task[None]] = []
        for name in NODES:
            agent = LinkedAgent(self.folder / name, name=name, cpus=CPUS)
            agent.network = self.network
            self.network.agents[name] = agent
            self.expiring.append(self.loop.create_task(agent.expire(EXPIRES_S)))
        self.services: dict[str, RunningModel] = {}
        self.launches = Counter[str]()
        self.forgot_at = 0.0
        """When the manager has last forgotten a claim: a kernel may then run beside the next holder for a while."""
        for name in NAMES:
            self.run(self.open(name))

    # The world

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)
        self.check_slices()
        assert self.errors.found == []

    async def open(self, name: str) -> None:
        """Open a service, as often as it takes: its client tries again while the manager is away."""
        while name not in self.services:
            service = RunningModel(self.network, self.ledger, self.folder / f"service-{name}", name)
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
        for name, agent in self.network.agents.items():
            assert self.ledger.free_on(name) >= 0, self.ledger.granted
            if self.loop.now - self.forgot_at > SETTLES_S:
                leases = {entry.lease.id: entry.lease for entry in agent.ledger.entries()}
                running = [kernel for kernel in agent.kernels.values() if kernel.is_running]
                used = sum(
                    leases[kernel.lease_id].request.cpus for kernel in running if kernel.lease_id in leases
                )
                assert used <= CPUS, running

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

    @rule(at=st.sampled_from(NODES), number=st.integers(0, 5))
    def kernel_ends(self, at: str, number: int) -> None:
        agent = self.network.agents[at]
        running = [kernel.kernel_id for kernel in agent.kernels.values() if kernel.is_running]
        if agent.is_up and running:
            self.run(self.act(lambda: agent.end(running[number % len(running)])))

    @rule(at=st.sampled_from(NODES))
    def agent_crashes(self, at: str) -> None:
        self.run(self.act(self.network.agents[at].crash))

    @rule(at=st.sampled_from(NODES))
    def connections_break(self, at: str) -> None:
        self.run(self.act(lambda: self.network.cut(self.network.agents[at])))

    @rule(seconds=st.sampled_from([0.1, 3.0, 30.0]))
    def manager_leaves(self, seconds: float) -> None:
        def come_back() -> None:
            self.ledger.is_away = False

        self.ledger.is_away = True
        self.loop.call_later(seconds, come_back)

    @rule(number=st.integers(0, 5))
    def manager_forgets(self, number: int) -> None:
        if self.ledger.granted:
            self.forgot_at = self.loop.now
            del self.ledger.granted[list(self.ledger.granted)[number % len(self.ledger.granted)]]

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
            self.ledger.is_away = False
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
        for agent in self.network.agents.values():
            agent.revive()
        await asyncio.sleep(SETTLES_S)
        for service in self.services.values():
            assert all(task.done() for task in service.tasks), "a client waits for ever"
        self.check_agreement(self.services.values())
        for service in self.services.values():
            for kernel in service.scheduler.kernels():
                await service.scheduler.stop(kernel.id, 0.0)
        await asyncio.sleep(60.0)
        assert self.ledger.granted == {}
        assert [agent.held_leases() for agent in self.network.agents.values()] == [[], []]
        for name in NAMES:
            await self.kill(name)
        for task in self.expiring:
            task.cancel()
        await asyncio.wait(self.expiring)

    def check_agreement(self, services: Collection[RunningModel]) -> None:
        """No kernel without a lease, no lease without a kernel, on all three sides."""
        kernels = {kernel.lease_id: kernel for each in services for kernel in each.scheduler.kernels()}
        noted = {lease_id for agent in self.network.agents.values() for lease_id in agent.held_leases()}
        running = {
            kernel.lease_id
            for agent in self.network.agents.values()
            for kernel in agent.kernels.values()
            if kernel.is_running
        }
        sides = set(kernels), set(self.ledger.granted), noted, running
        assert sides[0] == sides[1] == sides[2], sides
        assert running == {lease_id for lease_id, kernel in kernels.items() if kernel.state == "running"}


def test_leases_and_kernels_agree_after_any_faults() -> None:
    """`ROOST_ROUNDS=100` tries a hundred times as many cases."""
    run_state_machine_as_test(
        Leases,
        settings=settings(
            max_examples=100 * int(os.environ.get("ROOST_ROUNDS", "1")),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
