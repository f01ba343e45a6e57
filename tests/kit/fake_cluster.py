"""A cluster of agents in this process: the real ledger and the real protocol, but no kernel is ever started.

An agent can be told to fail, or to hang until released, at a named stage (`reserve`, `launch`, `stop`, …).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq
from backend_contexts import backend_context

from roost.launchers.agent.ledger import Conflict, LeaseLedger
from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.protocol.json_codec import encode
from roost.launchers.protocol.messages import (
    AgentEvent,
    Connection,
    Holdings,
    KernelProcess,
    Launch,
    Lease,
    Logs,
    NodeStatus,
    Nothing,
    Owner,
    Release,
    Reserve,
    Signal,
    Stop,
    Transfer,
)
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, ServerKeys
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.placement import Device, Node, Request, Snapshot
from roost.scheduler.backends.base import AgentAddress, Backend, BackendEvent, LeaseReading
from roost.scheduler.backends.local.backend import LocalBackend
from roost.scheduler.backends.local.settings import RoostLocalBackend
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.core.scheduler import Scheduler
from roost.scheduler.errors import UnknownKernel
from roost.scheduler.service.messages import Event, Kernel, StartKernel


class FakeAgent:
    """One node. `failures`: stage → the error it answers with; `held`: stage → an event it waits for first."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "here",
        cpus: float = 4.0,
        memory_bytes: int = 8 << 30,
        gpus: int = 0,
    ) -> None:
        self.name = name
        self.folder = folder
        self._totals = (cpus, memory_bytes, gpus)
        self.failures: dict[str, RemoteError] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []
        self._called = asyncio.Event()
        self.launched: list[Launch] = []
        self.warm: tuple[str, ...] = ()
        self.signals: list[tuple[str, int]] = []
        self.kernels: dict[str, KernelProcess] = {}
        self._keys = [key.decode() for key in (*zmq.curve_keypair(), *zmq.curve_keypair())]
        self._begin()

    def _begin(self) -> None:
        cpus, memory_bytes, gpus = self._totals
        devices = [Device(id=str(index), model="T4") for index in range(gpus)]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ledger = LeaseLedger(
            self.folder / "leases", cpus=cpus, memory_bytes=memory_bytes, devices=devices
        )
        operations: dict[str, tuple[type, Callable[[Any], Any]]] = {
            "subscribe": (Nothing, lambda _: {}),
            "reserve": (Reserve, self._reserve),
            "release": (Release, self._release),
            "transfer": (Transfer, self._transfer),
            "launch": (Launch, self._launch),
            "signal": (Signal, self._signal),
            "stop": (Stop, self._stop),
            "list": (Nothing, self._list),
            "logs": (Logs, lambda _: {"text": "log"}),
            "status": (Nothing, self._status),
        }
        public, secret, client_public, client_secret = self._keys
        self._server = RpcServer(
            {
                name: Operation(arguments, self._handler(name, do))
                for name, (arguments, do) in operations.items()
            },
            keys=ServerKeys(public=public, secret=secret, clients=frozenset([client_public])),
        )
        endpoint = self._server.start("tcp://127.0.0.1:*")
        keys = ClientKeys(server=public, public=client_public, secret=client_secret)
        self.address = AgentAddress(endpoint=endpoint, keys=keys)

    def _handler(self, name: str, do: Callable[[Any], Any]) -> Callable[[bytes, Any], Awaitable[Any]]:
        async def handle(peer: bytes, arguments: Any) -> Any:
            self.calls.append(name)
            self._called.set()
            if name == "subscribe":
                self._server.subscribe(peer)
            if name in self.held:
                await self.held[name].wait()
            if name in self.failures:
                raise self.failures[name]
            return do(arguments)

        return handle

    def hold(self, stage: str) -> asyncio.Event:
        """Have calls of this stage wait for the event that is returned."""
        self.held[stage] = asyncio.Event()
        return self.held[stage]

    def fail(self, stage: str, kind: str = "internal") -> None:
        """Have calls of this stage fail."""
        self.failures[stage] = RemoteError(kind, f"{stage} fails: {kind}", {})

    async def called(self, stage: str) -> None:
        """Wait until that stage was called (again, where it was before: clear `calls`)."""
        while stage not in self.calls:
            self._called.clear()
            await asyncio.wait_for(self._called.wait(), 5.0)

    def end(self, kernel_id: str, exit_code: int = 1) -> None:
        """A kernel ends by itself."""
        process = replace(
            self.kernels[kernel_id],
            is_running=False,
            exit_code=exit_code,
            reason=f"exited with code {exit_code}",
        )
        self.kernels[kernel_id] = process
        self._tell(AgentEvent(kind="exited", lease_id=process.lease_id, kernel=process))

    def give_back(self, lease_id: str) -> None:
        """The reservation expires."""
        self._release(Release(lease_id=lease_id))

    def held_leases(self) -> list[str]:
        return [entry.lease.id for entry in self.ledger.entries()]

    async def restart(self) -> None:
        """It is killed, and the next one takes over with the same records, at another port."""
        await self._server.close()
        await asyncio.sleep(
            0.01
        )  # pyzmq's authenticator lets go of its descriptor, whose number is used again
        self._begin()

    async def close(self) -> None:
        await self._server.close()

    def _reserve(self, request: Reserve) -> Lease:
        is_new = self.ledger.get(request.lease.id) is None
        try:
            lease = self.ledger.reserve(request)
        except Conflict as problem:
            raise RemoteError("conflict", str(problem)) from None
        if is_new:
            self._tell(AgentEvent(kind="reserved", lease_id=lease.id))
        return lease

    def _release(self, request: Release) -> Nothing:
        entry = self.ledger.get(request.lease_id)
        if entry is not None:
            process = self.kernels.get(entry.lease.kernel_id)
            if process is not None and process.is_running:
                self.end(process.kernel_id, -15)
            self.kernels.pop(entry.lease.kernel_id, None)
            self.ledger.release(request.lease_id)
            self._tell(AgentEvent(kind="released", lease_id=request.lease_id))
        return Nothing()

    def _transfer(self, request: Transfer) -> Nothing:
        self.ledger.transfer(request.lease_id, request.owner)
        return Nothing()

    def _launch(self, request: Launch) -> KernelProcess:
        entry = self.ledger.get(request.lease_id)
        if entry is None:
            raise RemoteError("no_lease", "there is no such lease")
        known = self.kernels.get(request.kernel_id)
        if known is not None and known.launch_id == request.launch_id:
            return known
        if known is not None and known.is_running:
            raise RemoteError("bad_request", "it still runs")
        self.launched.append(request)
        process = KernelProcess(
            kernel_id=request.kernel_id,
            launch_id=request.launch_id,
            lease_id=request.lease_id,
            owner=entry.lease.owner,
            pid=4711,
            process_started_at=1.0,
            how="exec",
            connection=replace(request.connection, shell_port=50_000),
            launched_at=0.0,
        )
        self.kernels[request.kernel_id] = process
        self._tell(AgentEvent(kind="launched", lease_id=request.lease_id, kernel=process))
        return process

    def _signal(self, request: Signal) -> dict[str, bool]:
        self.signals.append((request.kernel_id, request.signum))
        return {"delivered": request.kernel_id in self.kernels}

    def _stop(self, request: Stop) -> KernelProcess:
        if request.kernel_id not in self.kernels:
            raise RemoteError("unknown_kernel", "there is no such kernel")
        if self.kernels[request.kernel_id].is_running:
            self.end(request.kernel_id, -15)
        return self.kernels[request.kernel_id]

    def _list(self, _: Nothing) -> Holdings:
        leases = tuple(entry.lease for entry in self.ledger.entries())
        return Holdings(leases=leases, kernels=tuple(self.kernels.values()))

    def _status(self, _: Nothing) -> NodeStatus:
        promised = self.ledger.promised_by_device()
        return NodeStatus(
            hostname=self.name,
            cpus=self.ledger.cpus,
            memory_bytes=self.ledger.memory_bytes,
            devices=tuple(
                Device(id=device_id, model=model, promised=promised[device_id], used=0.0)
                for device_id, model in self.ledger.models.items()
            ),
            cpus_promised=self.ledger.cpus_promised,
            memory_promised_bytes=self.ledger.memory_promised_bytes,
            gpus_promised=self.ledger.gpus_promised,
            cpus_used=0.0,
            memory_used_bytes=0,
            kernels=len(self.kernels),
            metrics_age_s=0.0,
            warm=self.warm,
        )

    def _tell(self, event: AgentEvent) -> None:
        self._server.publish(encode(event))


def local_backend(
    agent: FakeAgent, settings: Settings, agents: Agents, local: RoostLocalBackend | None = None
) -> LocalBackend:
    """The real local backend, over a fake agent."""

    async def find(_: AgentSettings) -> tuple[str, ClientKeys]:
        return agent.address.endpoint, agent.address.keys

    context = backend_context(agents, agent.folder, settings)
    return LocalBackend(local or RoostLocalBackend(), context, find_agent=find)


class FakeBackend(Backend):
    """Several nodes: one `LocalBackend` over one fake agent for each.

    `lies` makes a node look as it is not until its resources change, so that placing there meets a conflict.
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

    async def claim(self, lease: Lease) -> Lease:
        return await self._parts[lease.node_id].claim(lease)

    async def release(self, lease: Lease) -> None:
        await self._parts[lease.node_id].release(lease)

    async def transfer(self, lease: Lease, owner: Owner) -> Lease:
        return await self._parts[lease.node_id].transfer(lease, owner)

    async def leases(self) -> LeaseReading:
        readings = [await part.leases() for part in self._parts.values()]
        return LeaseReading(leases=tuple(lease for reading in readings for lease in reading.leases))

    async def agent(self, lease: Lease) -> AgentAddress:
        if lease.node_id not in self._parts:
            raise UnknownKernel("its node has left the cluster", kernel_id=lease.kernel_id)
        return await self._parts[lease.node_id].agent(lease)

    async def warm_up(self) -> int:
        return len(self._parts)


class World:
    """A scheduler on fake nodes, and what it has told."""

    def __init__(
        self, fakes: list[FakeAgent], settings: Settings, name: str, local: RoostLocalBackend | None = None
    ) -> None:
        agents = Agents()
        self.settings = settings
        self.fakes = fakes
        self.agent = fakes[0]
        self.backend = FakeBackend(fakes, settings, agents, local)
        self.scheduler = Scheduler(self.backend, agents, settings, name=name)
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        self.scheduler.events.listen(self._on_event)

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    def start(self, kernel_id: str, launch_id: str = "1", **asked: Any) -> asyncio.Task[Kernel]:
        """Ask for a kernel; `asked` are fields of the request, of `StartKernel`, or `user`."""
        own = {name: asked.pop(name) for name in ("owner", "launch_timeout_s") if name in asked}
        owner = own.pop("owner", None) or Owner(user=asked.pop("user", "ada"))
        start = StartKernel(
            kernel_id=kernel_id,
            launch_id=launch_id,
            request=Request(**asked),
            owner=owner,
            argv=("kernel", "{connection_file}"),
            env={"SECRET": "hush"},
            cwd="/",
            connection=Connection(key="hush"),
            **{"launch_timeout_s": 10.0, **own},
        )
        return asyncio.ensure_future(self.scheduler.start(start))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that an event brings about."""
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 5.0)

    async def told(self, kind: str, kernel_id: str = "", times: int = 1) -> None:
        """Wait for an event of that kind."""
        await self.until(lambda: self.count(kind, kernel_id) >= times)

    def count(self, kind: str, kernel_id: str = "") -> int:
        return sum(
            event.kind == kind
            and (not kernel_id or (event.kernel is not None and event.kernel.id == kernel_id))
            for event in self.events
        )

    def kernel(self, kernel_id: str) -> Kernel:
        return self.scheduler.kernel(kernel_id)

    def leases(self) -> list[str]:
        """Of all nodes, as their ledgers have them."""
        return [lease for fake in self.fakes for lease in fake.held_leases()]


@asynccontextmanager
async def world(
    folder: Path, *, nodes: tuple[str, ...] = ("here",), settings: Settings | None = None, **totals: Any
) -> AsyncIterator[World]:
    """Fake nodes of the same totals with a scheduler; all is closed at the end."""
    fakes = [FakeAgent(folder / name, name=name, **totals) for name in nodes]
    async with AsyncExitStack() as stack:
        for fake in fakes:
            stack.push_async_callback(fake.close)
        yield await stack.enter_async_context(scheduler_on(fakes, settings))


@asynccontextmanager
async def scheduler_on(
    fakes: list[FakeAgent],
    settings: Settings | None = None,
    name: str = "s",
    local: RoostLocalBackend | None = None,
) -> AsyncIterator[World]:
    """A scheduler on nodes that are there already: the successor of one that was closed, or killed."""
    made = World(fakes, settings or Settings(), name, local)
    await made.scheduler.open()
    try:
        yield made
    finally:
        await made.scheduler.close()
