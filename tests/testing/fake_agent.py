"""An agent without kernels, for tests of schedulers and backends."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zmq

from roost.launchers.agent.leases.ledger import Conflict, LeaseLedger
from roost.launchers.protocol.messages import (
    AgentEvent,
    Holdings,
    KernelProcess,
    KernelUse,
    Launch,
    Lease,
    Reserve,
)
from roost.launchers.protocol.process_context import ProcessContext
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, ServerKeys
from roost.launchers.protocol.rpc_server import PEER, Operation, RpcServer
from roost.placement import Device, Node
from roost.placement.model.json_codec import encode
from roost.scheduler.backends.base import AgentAddress

from .deadlines import allow_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """What another agent of the machine has promised. `devices` has the share of each device."""

    cpus: float = 0.0
    memory_bytes: int = 0
    devices: Mapping[str, float] = field(default_factory=dict)


class FakeAgent:
    """An agent in this process. It has the real ledger and speaks the real protocol, but starts no kernels.

    A stage is the name of an operation, such as `reserve`, `launch` or `stop`. After `fail` or `hold`, the
    calls of that stage fail or wait. The agent listens at `address`.
    """

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
        self.use: dict[str, KernelUse] = {}
        self.failures: dict[str, RemoteError] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []
        self._called = asyncio.Event()
        self.launched: list[Launch] = []
        self.warm: tuple[str, ...] = ()
        self.problems: tuple[str, ...] = ()
        self.cpus_used = 0.0
        self.others: tuple[Promised, ...] = ()
        """The promises of other agents of the machine. The status counts them, but `reserve` does not."""
        self.ends_at: float | None = None
        """As in `Holdings`."""
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
        operations: dict[str, Callable[..., Any]] = {
            "subscribe": lambda: None,
            "reserve": self._reserve,
            "release": self._release,
            "transfer": self.ledger.transfer,
            "launch": self._launch,
            "signal": self._signal,
            "stop": self._stop,
            "list": self._list,
            "logs": self._logs,
            "status": self._status,
            "stats": lambda: tuple(self.use.values()),
            "warm": self._warm,
        }
        messages = {"reserve": Reserve, "launch": Launch}
        self.operations = {
            name: Operation(self._handler(name, do), messages.get(name)) for name, do in operations.items()
        }
        self._listen()

    def _listen(self) -> None:
        public, secret, client_public, client_secret = self._keys
        self._server = RpcServer(
            self.operations,
            keys=ServerKeys(public=public, secret=secret, clients=frozenset([client_public])),
            on_subscribed=self.report_status,
        )
        endpoint = self._server.start("tcp://127.0.0.1:*")
        keys = ClientKeys(server=public, public=client_public, secret=client_secret)
        self.address = AgentAddress(endpoint=endpoint, keys=keys)

    def _handler(self, name: str, do: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(do)
        async def handle(*message: Any, **arguments: Any) -> Any:
            self.calls.append(name)
            self._called.set()
            if name in self.held:
                await self.held[name].wait()
            if name in self.failures:
                raise self.failures[name]
            return do(*message, **arguments)

        return handle

    def hold(self, stage: str) -> asyncio.Event:
        """Let all calls of this stage wait until the returned event is set."""
        self.held[stage] = asyncio.Event()
        return self.held[stage]

    def fail(self, stage: str, kind: str = "internal") -> None:
        """Let all calls of this stage fail with a `RemoteError` of this kind."""
        self.failures[stage] = RemoteError(kind, f"{stage} fails: {kind}", {})

    async def called(self, stage: str) -> None:
        """Wait until `calls` has this stage. To wait for a further call, clear `calls` first."""
        while stage not in self.calls:
            self._called.clear()
            await asyncio.wait_for(self._called.wait(), allow_s(60))

    def end(self, kernel_id: str, exit_code: int = 1) -> None:
        """Let a kernel end by itself, with this exit code."""
        process = replace(
            self.kernels[kernel_id],
            is_running=False,
            exit_code=exit_code,
            reason=f"exited with code {exit_code}",
        )
        self.kernels[kernel_id] = process
        self.report(AgentEvent(kind="exited", lease_id=process.lease_id, kernel=process))

    def give_back(self, lease_id: str) -> None:
        """Let a reservation expire."""
        self._release(lease_id)

    def cut_off(self, ends_at: float) -> None:
        """Report the end of the manager's last daemon here, and until when the kernels wait for another one."""
        self.ends_at = ends_at
        self.report(AgentEvent(kind="lost", reason="its daemon has ended", ends_at=ends_at))

    def held_leases(self) -> list[str]:
        return [entry.lease.id for entry in self.ledger.entries()]

    async def restart(self) -> None:
        """Replace this agent by a successor with the same leases and kernels, at another port."""
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
            self.report(AgentEvent(kind="reserved", lease_id=lease.id, node=self._status()))
        return lease

    def _release(self, lease_id: str) -> None:
        entry = self.ledger.get(lease_id)
        if entry is not None:
            process = self.kernels.get(entry.lease.kernel_id)
            if process is not None and process.is_running:
                self.end(process.kernel_id, -15)
            self.kernels.pop(entry.lease.kernel_id, None)
            self.ledger.release(lease_id)
            self.report(AgentEvent(kind="released", lease_id=lease_id, node=self._status()))

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
            pid=4711,
            process_started_at=1.0,
            how="exec",
            connection=replace(request.connection, shell_port=50_000),
            launched_at=time.time(),
        )
        self.kernels[request.kernel_id] = process
        event = AgentEvent(kind="launched", lease_id=request.lease_id, kernel=process)
        self.report(event, but=PEER.get())
        return process

    def _signal(self, kernel_id: str, signum: int) -> dict[str, bool]:
        self.signals.append((kernel_id, signum))
        return {"delivered": kernel_id in self.kernels}

    def _stop(self, kernel_id: str, grace_s: float) -> KernelProcess:
        if kernel_id not in self.kernels:
            raise RemoteError("unknown_kernel", "there is no such kernel")
        if self.kernels[kernel_id].is_running:
            self.end(kernel_id, -15)
        return self.kernels[kernel_id]

    def _logs(self, kernel_id: str, tail_bytes: int) -> dict[str, str]:
        return {"text": "log"}

    def _list(self) -> Holdings:
        leases = tuple(entry.lease for entry in self.ledger.entries())
        return Holdings(leases=leases, kernels=tuple(self.kernels.values()), ends_at=self.ends_at)

    def _warm(self, argv: tuple[str, ...], env: Mapping[str, str], context: ProcessContext) -> None:
        """Do nothing, because the kernels have no processes."""

    def _status(self) -> Node:
        promised = self.ledger.promised_by_device()
        for holder in self.others:
            for device_id, share in holder.devices.items():
                promised[device_id] += share
        return Node(
            id=self.name,
            cpus=self.ledger.cpus,
            memory_bytes=self.ledger.memory_bytes,
            devices=tuple(
                Device(id=device_id, model=model, promised=promised[device_id], used=0.0)
                for device_id, model in self.ledger.models.items()
            ),
            cpus_promised=self.ledger.cpus_promised + sum(each.cpus for each in self.others),
            memory_promised_bytes=self.ledger.memory_promised_bytes
            + sum(each.memory_bytes for each in self.others),
            gpus_promised=sum(promised.values()),
            resources_promised=self.ledger.resources_promised,
            cpus_used=self.cpus_used,
            memory_used_bytes=0,
            kernels=len(self.ledger.entries()),
            owners=self.ledger.count_by_user(),
            metrics_age_s=0.0,
            warm=self.warm,
            problems=self.problems,
        )

    def report(self, event: AgentEvent, but: bytes = b"") -> None:
        """Publish an event to all subscribers, except the connection `but`."""
        self._server.publish(encode(event), but=but)

    def report_status(self) -> None:
        """Report the node's real use, as a real agent does when that has changed."""
        self.report(AgentEvent(kind="status", node=self._status()))
