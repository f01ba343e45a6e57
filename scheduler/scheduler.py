"""The scheduler: admit → queue → snapshot → place → lease → launch, and back from any of these steps.

Every start is a task of its own, named by (kernel id, launch id), and its steps are durable: the lease's id is
made of both, so that claiming it again finds it, and an agent answers a repeated launch as it did the first.
A scheduler that is killed in between therefore loses nothing: the client repeats its call, and whichever
scheduler gets it goes on from what is there. Nothing is held here that `Keeper` cannot read back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from typing import Any

from ..launchers.client import AgentClient
from ..launchers.messages import KernelProcess, Launch, Owner, Warm
from ..launchers.rpc import Disconnected, RemoteError, RpcError
from ..placement import Decision, Node, Request, Snapshot, policy
from .agents import Agents
from .backends.base import Backend, Lease
from .claims import claim, kept_from
from .config import Settings
from .errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    KernelDied,
    LaunchError,
    LaunchTimeout,
    LeaseConflict,
    NoNodeEver,
    NoNodeNow,
    RoostError,
    UnknownKernel,
)
from .events import EventStream
from .kernels import Record
from .keeper import Keeper
from .limits import admit, with_defaults
from .operations import WarmUp
from .queue import Queue, Ticket
from .values import Kernel, KernelRequest, StartKernel

log = logging.getLogger(__name__)

_REMEMBERED = 1_000
_LAUNCH_TRIES = 4


class Scheduler:
    """One queue in front of one backend. `name` marks the leases that are this scheduler's own.

    `clock` is monotonic. Belongs to the event loop that calls `open`.
    """

    def __init__(
        self,
        backend: Backend,
        agents: Agents,
        settings: Settings,
        *,
        name: str = "scheduler",
        events: EventStream | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.events = events or EventStream()
        self._backend = backend
        self._agents = agents
        self._settings = settings
        self._clock = clock
        self._queue = Queue(on_moved=self._on_moved, clock=clock)
        self._outcomes: OrderedDict[tuple[str, str], RoostError] = OrderedDict()
        self._draining: set[str] = set()
        self._is_closing = False
        self.keeper = Keeper(backend, agents, settings, self.events, self._queue, name=name, ending=self)
        self._records = self.keeper.records

    async def open(self) -> None:
        """Join the cluster and read back what earlier schedulers left; raises `BackendUnavailable`."""
        await self._backend.open()
        await self.keeper.open()

    async def close(self) -> None:
        """Leave. Kernels, leases and starts under way stay as they are, for the next scheduler."""
        self._is_closing = True
        starts = [record.start for record in self._records.values() if record.start is not None]
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        self._queue.close()
        await self.keeper.close()
        await self._backend.close()
        await self._agents.close()

    async def start(self, start: StartKernel) -> Kernel:
        """Start a kernel, or join or repeat the answer of a start of the same launch id; raises `RoostError`."""
        record = self._records.get(start.kernel_id)
        outcome = self._outcomes.get((start.kernel_id, start.launch_id))
        if outcome is not None:
            raise outcome
        if record is not None and record.start is not None:
            if record.launch_id != start.launch_id:
                raise LaunchError(
                    f"kernel {start.kernel_id} is being started already; cancel that start first."
                )
            return await asyncio.shield(record.start)
        if record is not None and record.process is not None:
            if record.process.launch_id == start.launch_id:
                return record.view(self._queue, with_connection=True)
            if record.process.is_running:
                raise LaunchError(f"kernel {start.kernel_id} still runs; stop it before starting it again.")
        request = with_defaults(start.request, self._settings)
        held = [
            other.request
            for other in self._records.values()
            if other.owner.user == start.owner.user and other.kernel_id != start.kernel_id
        ]
        admit(request, start.owner.user, held, self._settings)
        self.keeper.owners.watch(start.owner)
        if record is None:
            record = self.keeper.add(start, request)
        record.launch_id, record.owner, record.reason = start.launch_id, start.owner, ""
        record.start = asyncio.get_running_loop().create_task(self._run(record, start))
        record.start.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(record.start)

    async def cancel(self, kernel_id: str, launch_id: str = "") -> None:
        """Take a start back; with a launch id also one that is unknown yet, or that has just succeeded."""
        record = self._records.get(kernel_id)
        if record is not None and launch_id in ("", record.launch_id):
            if record.start is not None:
                record.start.cancel()
                await asyncio.wait([record.start])
                return
            if launch_id and record.process is not None and record.process.is_running:
                await self.stop(kernel_id, 0.0)
        if launch_id:
            self._remember(
                kernel_id, launch_id, Cancelled(f"the start of kernel {kernel_id} was taken back.")
            )

    async def stop(self, kernel_id: str, grace_s: float, reason: str = "stopped") -> Kernel:
        """End a kernel or its start, and give its lease back. Raises `UnknownKernel`, `BackendUnavailable`."""
        record = self._records.get(kernel_id)
        if record is None:
            return self._ended(kernel_id)
        if record.start is not None:
            record.start.cancel()
            await asyncio.wait([record.start])
        if record.lease is not None and self._records.get(kernel_id) is record:
            if record.process is not None and record.process.is_running:
                record.reason = reason
                await self._end_process(record, record.lease, grace_s)
            await self._backend.release(record.lease)
        self.keeper.drop(record, reason)
        return self._ended(kernel_id)

    async def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to a running kernel's process group; raises `UnknownKernel`."""
        lease = self._lease_of(kernel_id)
        await self._call(lease, lambda agent: agent.signal(kernel_id, signum))

    async def logs(self, kernel_id: str, tail_bytes: int) -> str:
        """The last of what a kernel wrote outside Jupyter's channels; of one that ended, what is known of it."""
        if kernel_id not in self._records:
            return self._ended(kernel_id).log_tail
        lease = self._lease_of(kernel_id)
        return await self._call(lease, lambda agent: agent.logs(kernel_id, tail_bytes))

    def kernels(self) -> list[Kernel]:
        """All kernels that hold, or wait for, a lease."""
        return [record.view(self._queue) for record in self._records.values()]

    def kernel(self, kernel_id: str) -> Kernel:
        """One kernel with its connection, also some time after its end; raises `UnknownKernel`."""
        record = self._records.get(kernel_id)
        return record.view(self._queue, with_connection=True) if record else self._ended(kernel_id)

    async def nodes(self) -> list[dict[str, Any]]:
        """All nodes, as JSON values."""
        snapshot = await self._snapshot()
        return [snapshot.node(node_id).to_dict() for node_id in snapshot.nodes]

    async def explain(self, request: KernelRequest, owner: Owner) -> dict[str, Any]:
        """Where such a kernel would go now, and why; raises what a start would be refused with."""
        request = with_defaults(request, self._settings)
        admit(request, owner.user, [], self._settings)
        placed = _policy(request.policy).place(_placement_request(request, owner), await self._snapshot())
        return placed.to_dict()

    async def drain(self, node_id: str, on: bool) -> None:
        """Stop or resume placing on a node."""
        if node_id not in await self._backend.snapshot():
            raise ConfigError(f"there is no node {node_id}; see `roost nodes`.")
        (self._draining.add if on else self._draining.discard)(node_id)
        self.events.publish("nodes", detail=f"node {node_id} {'drains' if on else 'is open again'}")
        self._queue.wake()

    async def warm(self, asked: WarmUp, owner: Owner) -> None:
        """Prepare fast starts where such a kernel would go now."""
        request = with_defaults(asked.request, self._settings)
        placement_request = _placement_request(request, owner)
        decision = _policy(request.policy).place(placement_request, await self._snapshot())
        if decision.placement is None:
            raise _no_node(decision)
        lease = Lease(
            id="",
            kernel_id="",
            node_id=decision.placement.node_id,
            device_ids=(),
            request=placement_request,
            owner=owner,
        )
        await self._call(lease, lambda agent: agent.warm(Warm(argv=asked.argv, env=asked.env)))

    def is_idle(self) -> bool:
        return not self._records

    async def _run(self, record: Record, start: StartKernel) -> Kernel:
        """The start of one kernel, from the queue to the running process."""
        is_restart = record.lease is not None and record.process is not None
        deadline = self._clock() + start.launch_timeout_s
        try:
            record.process, record.late_exit = None, None
            record.process = await self._bring_up(record, start, deadline)
            record.state = "running"
            self.events.publish("running", record.view(self._queue))
            return record.view(self._queue, with_connection=True)
        except asyncio.CancelledError:
            if self._is_closing:
                raise
            error: RoostError = Cancelled(f"the start of kernel {start.kernel_id} was taken back.")
            await self._undo(record, start, error, keep_lease=is_restart)
            raise error from None
        except RoostError as problem:
            await self._undo(record, start, problem, keep_lease=is_restart)
            raise
        finally:
            record.start = None
            if record.late_exit is not None:
                self.keeper.exited(record, record.late_exit)

    async def _bring_up(self, record: Record, start: StartKernel, deadline: float) -> KernelProcess:
        while True:
            if record.lease is None:
                await self._take_lease(record, start, deadline)
            assert record.lease is not None
            record.state = "starting"
            began = self._clock()
            try:
                process = await self._launch(record.lease, start, deadline)
            except _LeaseGone:
                record.lease = None
                continue
            record.timing_ms["launched"] = (self._clock() - began) * 1e3
            return process

    async def _take_lease(self, record: Record, start: StartKernel, deadline: float) -> None:
        """Wait for room and claim it; on return the record has its lease."""
        request = _placement_request(record.request, start.owner)
        chosen = _policy(record.request.policy)
        began = self._clock()
        record.state = "queued"
        record.ticket = ticket = self._queue.join(record.kernel_id, _line(record.request))
        avoid: dict[str, Node] = {}
        decision: Decision | None = None
        try:
            while True:
                try:
                    await self._queue.turn(ticket, deadline)
                except asyncio.TimeoutError:
                    raise self._out_of_time(ticket, decision, start.launch_timeout_s) from None
                snapshot = await self._snapshot()
                avoid = {name: node for name, node in avoid.items() if _is_as_it_was(node, snapshot)}
                looked = self._clock()
                kept = kept_from(
                    ticket, request, self._queue.heads(), now=looked, after_s=self._settings.reserve_after_s
                )
                decision = chosen.place(request, snapshot, avoid=frozenset(avoid) | kept)
                if decision.placement is None:
                    if decision.is_never:
                        raise _no_node(decision)
                    ticket.claim = claim(decision, snapshot)
                    others = f"; {', '.join(sorted(kept))} is kept for who has waited longer" if kept else ""
                    self._queue.say(ticket, decision.reason + others)
                    continue
                placed = self._clock()
                record.timing_ms["queued"] = (looked - began) * 1e3
                record.timing_ms["placed"] = (placed - looked) * 1e3
                if await self._claim(record, request, decision):
                    record.timing_ms["leased"] = (self._clock() - placed) * 1e3
                    return
                avoid[decision.placement.node_id] = snapshot.node(decision.placement.node_id)
                ticket.event.set()
        finally:
            self._queue.leave(ticket)
            record.ticket = None

    async def _claim(self, record: Record, request: Request, decision: Decision) -> bool:
        """Claim what was placed; False on a conflict. The lease is noted before it is asked for, to be undone."""
        assert decision.placement is not None
        placement = decision.placement
        record.lease = Lease(
            id=self.keeper.lease_id(record.kernel_id, record.launch_id),
            kernel_id=record.kernel_id,
            node_id=placement.node_id,
            device_ids=placement.device_ids,
            request=request,
            owner=record.owner,
        )
        record.decision = decision.to_dict()
        self.events.publish("placed", record.view(self._queue), decision.reason)
        try:
            record.lease = await self._backend.lease(
                request, placement, lease_id=record.lease.id, kernel_id=record.kernel_id, owner=record.owner
            )
        except LeaseConflict as problem:
            record.lease = None
            self.events.publish("conflict", record.view(self._queue), f"{placement.node_id}: {problem}")
            return False
        self.events.publish("leased", record.view(self._queue))
        return True

    async def _launch(self, lease: Lease, start: StartKernel, deadline: float) -> KernelProcess:
        """Launch in the lease, again if the connection to the agent is lost on the way."""

        async def launch(agent: AgentClient) -> KernelProcess:
            remaining_s = deadline - self._clock()
            if remaining_s <= 0:
                raise LaunchTimeout(
                    f"kernel {start.kernel_id} did not start within {start.launch_timeout_s:g} s."
                )
            return await agent.launch(
                Launch(
                    launch_id=start.launch_id,
                    lease_id=lease.id,
                    kernel_id=start.kernel_id,
                    argv=start.argv,
                    env=start.env,
                    cwd=start.cwd,
                    connection=start.connection,
                    may_fork=start.may_fork,
                    deadline_s=remaining_s,
                )
            )

        return await self._call(lease, launch)

    async def _call(self, lease: Lease, call: Callable[[AgentClient], Coroutine[Any, Any, Any]]) -> Any:
        """Call the lease's agent, which is brought up again where it was killed; raises `RoostError`."""
        problem: Exception | None = None
        for _ in range(_LAUNCH_TRIES):
            try:
                return await call(await self._agents.client(await self._backend.agent(lease)))
            except (Disconnected, BackendUnavailable) as lost:
                problem = lost
                await self._backend.snapshot()  # waits until the agent answers again, or raises
            except RemoteError as refusal:
                raise _launch_error(refusal) from None
            except (RpcError, asyncio.TimeoutError) as late:
                raise BackendUnavailable(f"the agent on {lease.node_id} does not answer: {late}") from late
        raise BackendUnavailable(f"the agent on {lease.node_id} cannot be reached: {problem}") from problem

    async def _undo(self, record: Record, start: StartKernel, error: RoostError, *, keep_lease: bool) -> None:
        """Give back what a start has taken. A restart keeps its lease, which its agent gives up after a grace."""
        self._remember(start.kernel_id, start.launch_id, error)
        lease = record.lease
        try:
            if lease is not None and keep_lease:
                await asyncio.shield(self._end_process(record, lease, 0.0))
            elif lease is not None:
                await asyncio.shield(self._backend.release(lease))
        except RoostError as problem:
            log.error("kernel=%s its lease is not given back yet: %s", record.kernel_id, problem)
            self.keeper.reconcile_soon()
        record.state, record.reason = "exited", error.user_message
        self.events.publish(
            "cancelled" if isinstance(error, Cancelled) else "failed",
            record.view(self._queue),
            error.user_message,
        )
        if not keep_lease or lease is None:
            self.keeper.drop(record, error.user_message)

    async def _end_process(self, record: Record, lease: Lease, grace_s: float) -> None:
        try:
            process = await self._call(lease, lambda agent: agent.stop(record.kernel_id, grace_s))
        except UnknownKernel:
            return
        if process is not None:
            record.process = process

    async def _snapshot(self) -> Snapshot:
        snapshot = await self._backend.snapshot()
        draining = [snapshot.node(node_id) for node_id in self._draining if node_id in snapshot]
        return (
            snapshot.apply([replace(node, is_draining=True) for node in draining]) if draining else snapshot
        )

    def _lease_of(self, kernel_id: str) -> Lease:
        record = self._records.get(kernel_id)
        if record is None or record.lease is None:
            raise UnknownKernel(f"there is no running kernel {kernel_id}.", kernel_id=kernel_id)
        return record.lease

    def _ended(self, kernel_id: str) -> Kernel:
        kernel = self.keeper.ended.get(kernel_id)
        if kernel is None:
            raise UnknownKernel(f"there is no kernel {kernel_id}; see `roost kernels`.", kernel_id=kernel_id)
        return kernel

    def _remember(self, kernel_id: str, launch_id: str, error: RoostError) -> None:
        """A start that failed once has failed: a repeated call is told the same, and starts nothing."""
        self._outcomes[kernel_id, launch_id] = error
        while len(self._outcomes) > _REMEMBERED:
            self._outcomes.popitem(last=False)

    def _out_of_time(self, ticket: Ticket, decision: Decision | None, timeout_s: float) -> NoNodeNow:
        position, waits_for = self._queue.place(ticket)
        return NoNodeNow(
            f"waited {timeout_s:g} s at position {position}: {waits_for or 'the cluster did not answer'}.",
            position=position,
            decision=decision.to_dict() if decision else None,
        )

    def _on_moved(self, kernel_id: str) -> None:
        record = self._records.get(kernel_id)
        if record is not None and record.ticket is not None:
            position, waits_for = self._queue.place(record.ticket)
            self.events.publish("queued", record.view(self._queue), f"position {position}: {waits_for}")


class _LeaseGone(Exception):
    """The agent does not know the lease: it was given up, or the agent's files are gone."""


def _launch_error(refusal: RemoteError) -> Exception:
    if refusal.kind == "no_reservation":
        return _LeaseGone()
    kinds = {"kernel_died": KernelDied, "launch_timeout": LaunchTimeout, "unknown_kernel": UnknownKernel}
    return kinds.get(refusal.kind, LaunchError)(refusal.message, **refusal.fields)


def _no_node(decision: Decision) -> NoNodeNow | NoNodeEver:
    kind = NoNodeEver if decision.is_never else NoNodeNow
    return kind(f"{decision.reason}.", decision=decision.to_dict())


def _policy(name: str) -> Any:
    try:
        return policy(name)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def _placement_request(request: KernelRequest, owner: Owner) -> Request:
    try:
        return Request(
            cpus=request.cpus,
            memory_bytes=request.memory_bytes,
            gpus=request.gpus,
            gpu_models=request.gpu_models,
            labels=request.labels,
            owner=owner.user,
        )
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def _line(request: KernelRequest) -> Hashable:
    """Requests for the same under the same policy wait in one line."""
    amounts = (request.cpus, request.memory_bytes, request.gpus)
    return amounts, request.gpu_models, tuple(sorted(request.labels.items())), request.policy


def _is_as_it_was(node: Node, snapshot: Snapshot) -> bool:
    """Whether a node that refused still has the same resources promised: it would refuse again."""
    if node.id not in snapshot:
        return False
    now = snapshot.node(node.id)

    def promised(which: Node) -> tuple[Any, ...]:
        devices = tuple(device.promised for device in which.devices)
        return which.cpus_promised, which.memory_promised_bytes, which.gpus_promised, devices

    return promised(now) == promised(node)
