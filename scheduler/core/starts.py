"""One start from the queue to the running process, and back from any step: queue → place → lease → launch.

The steps are durable: the lease's id is made of the kernel's and the launch's, so that claiming it again finds
it, and an agent answers a repeated launch as it did the first. Where a scheduler is killed in between, the
client repeats its call, and whichever scheduler gets it goes on from what is there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import KernelProcess, Launch
from roost.placement import Decision, Node, Snapshot
from roost.scheduler.backends.base import Lease
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    LaunchError,
    LaunchTimeout,
    LeaseConflict,
    NoNodeEver,
    NoNodeNow,
    RoostError,
)
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.service.messages import Kernel, StartKernel

from .cluster import Cluster, LeaseGone
from .events import EventStream
from .keeper import Keeper
from .kernel_record import Record
from .node_hold import claim, kept_from
from .queue import Queue, Ticket

log = logging.getLogger(__name__)

_REMEMBERED = 1_000
_AWAY_S = 1.0
"""So often who waits looks whether a cluster that is away is back."""
_SKIP_S = (1.0, 30.0)
"""First and longest time for which a node is skipped that refuses what there seems to be room for: what a cluster
manager shows may be ahead of what it can give."""
_REFUSED = "refused this request a moment ago"
_KEPT = "kept for who has waited longer"


class Starts:
    """Brings kernels up, and remembers how starts failed. `clock` is monotonic."""

    def __init__(
        self,
        cluster: Cluster,
        keeper: Keeper,
        queue: Queue,
        policies: PolicyCatalog,
        events: EventStream,
        settings: Settings,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._keeper = keeper
        self._queue = queue
        self._policies = policies
        self._events = events
        self._settings = settings
        self._clock = clock
        self._failed: OrderedDict[tuple[str, str], RoostError] = OrderedDict()
        self.is_closing = False

    def failure(self, start: StartKernel) -> RoostError | None:
        """How this very start has failed already, if it has."""
        return self._failed.get((start.kernel_id, start.launch_id))

    async def take_back(self, record: Record) -> None:
        """Cancel a start, once, and wait until what it had taken is given back."""
        if record.start is not None:
            if not record.is_taken_back:
                record.is_taken_back = True
                if record.is_begun:
                    record.start.cancel()
            await asyncio.wait([record.start])

    def fail(self, kernel_id: str, launch_id: str, error: RoostError) -> None:
        """A start that failed once has failed: repeated, it is told the same, and starts nothing."""
        self._failed[kernel_id, launch_id] = error
        while len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)

    async def run(self, record: Record, start: StartKernel) -> Kernel:
        """The start of one kernel, from the queue to the running process."""
        lease_id = self._keeper.lease_id(start.kernel_id, start.launch_id)
        is_restart = record.lease is not None and record.lease.id != lease_id  # of an earlier launch
        deadline = self._clock() + start.launch_timeout_s
        try:
            record.is_begun = True
            _check_wanted(record)
            record.process, record.late_exit = None, None
            record.process = await self._bring_up(record, start, deadline)
            _check_wanted(record)
            record.state = "running"
            self._events.publish("running", record.view(self._queue))
            return record.view(self._queue, with_connection=True)
        except asyncio.CancelledError:
            if self.is_closing:
                raise
            error: RoostError = Cancelled(f"the start of kernel {start.kernel_id} was taken back.")
            await self._undo(record, start, error, keep_lease=is_restart)
            raise error from None
        except RoostError as problem:
            await self._undo(record, start, problem, keep_lease=is_restart)
            raise
        except Exception as problem:  # a defect, ours or a policy's: nothing may stay behind
            log.exception("kernel=%s its start failed", record.kernel_id)
            error = LaunchError(
                f"the scheduler failed to start the kernel ({type(problem).__name__}: {problem}); its log says more."
            )
            await self._undo(record, start, error, keep_lease=is_restart)
            raise error from problem
        finally:
            record.start = None
            if record.late_exit is not None:
                self._keeper.exited(record, record.late_exit)

    async def _bring_up(self, record: Record, start: StartKernel, deadline: float) -> KernelProcess:
        while True:
            if record.lease is None:
                await self._take_lease(record, start, deadline)
            assert record.lease is not None
            _check_wanted(record)
            if record.lease.owner != record.owner:  # a restart by another application
                record.lease = await self._cluster.backend.transfer(record.lease, record.owner)
            record.state = "starting"
            began = self._clock()
            try:
                process = await self._launch(record.lease, start, deadline)
            except LeaseGone:
                record.lease = None
                continue
            record.timing_ms["launched"] = (self._clock() - began) * 1e3
            return process

    async def _take_lease(self, record: Record, start: StartKernel, deadline: float) -> None:
        """Wait for room and claim it; on return the record has its lease."""
        environment = start.argv[0] if start.may_fork and start.argv else ""
        request = replace(record.request, environment=environment)
        began = self._clock()
        record.state = "queued"
        record.ticket = ticket = self._queue.join(record.kernel_id, _line(record))
        avoid: dict[str, _Skipped] = {}
        decision: Decision | None = None
        try:
            while True:
                try:
                    await self._queue.turn(ticket, deadline)
                except asyncio.TimeoutError:
                    raise self._out_of_time(ticket, decision, start.launch_timeout_s) from None
                try:
                    snapshot = await self._cluster.snapshot()
                except BackendUnavailable as problem:
                    if decision is None:
                        raise
                    self._queue.say(
                        ticket, str(problem)
                    )  # it was there: who waits already waits for it as well
                    asyncio.get_running_loop().call_later(_AWAY_S, ticket.event.set)
                    continue
                looked = self._clock()
                reasons = {
                    name: _REFUSED for name, skipped in avoid.items() if skipped.holds(snapshot, looked)
                }
                kept = kept_from(
                    ticket, request, self._queue.heads(), now=looked, after_s=self._settings.reserve_after_s
                )
                reasons |= dict.fromkeys(kept, _KEPT)
                decision = await self._policies.decide(
                    record.request.policy, request, snapshot, avoid=reasons
                )
                if decision.placement is None:
                    if decision.is_never:
                        raise no_node(decision)
                    ticket.claim = claim(decision, snapshot)
                    self._queue.say(ticket, decision.reason)
                    continue
                placed = self._clock()
                record.timing_ms["queued"] = (looked - began) * 1e3
                record.timing_ms["placed"] = (placed - looked) * 1e3
                if await self._claim(record, decision):
                    record.timing_ms["leased"] = (self._clock() - placed) * 1e3
                    return
                node_id = decision.placement.node_id
                skipped = avoid[node_id] = _Skipped.after(
                    avoid.get(node_id), snapshot.node(node_id), self._clock()
                )
                asyncio.get_running_loop().call_later(skipped.for_s, ticket.event.set)
                ticket.event.set()
        finally:
            self._queue.leave(ticket)
            record.ticket = None

    async def _claim(self, record: Record, decision: Decision) -> bool:
        """Claim what was placed; False on a conflict. The lease is noted before it is asked for, to be undone."""
        assert decision.placement is not None
        placement = decision.placement
        record.lease = Lease(
            id=self._keeper.lease_id(record.kernel_id, record.launch_id),
            kernel_id=record.kernel_id,
            node_id=placement.node_id,
            device_ids=placement.device_ids,
            request=record.request,
            owner=record.owner,
        )
        record.decision = decision.to_dict()
        self._events.publish("placed", record.view(self._queue), decision.reason)
        try:
            record.lease = await self._cluster.backend.claim(record.lease)
        except LeaseConflict as problem:
            record.lease = None
            self._events.publish("conflict", record.view(self._queue), f"{placement.node_id}: {problem}")
            return False
        self._events.publish("leased", record.view(self._queue))
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
                    env={**start.env, **self._cluster.backend.environment(lease)},
                    cwd=start.cwd,
                    connection=start.connection,
                    may_fork=start.may_fork,
                    deadline_s=remaining_s,
                )
            )

        return await self._cluster.call(lease, launch)

    async def _undo(self, record: Record, start: StartKernel, error: RoostError, *, keep_lease: bool) -> None:
        """Give back what a start has taken. A restart keeps its lease, which its agent gives up after a grace."""
        record.is_taken_back = True
        self.fail(start.kernel_id, start.launch_id, error)
        lease = record.lease
        try:
            if lease is not None and keep_lease:
                await asyncio.shield(self._cluster.end_process(lease, 0.0))
            elif lease is not None:
                await asyncio.shield(self._cluster.backend.release(lease))
        except RoostError as problem:
            log.error("kernel=%s its lease is not given back yet: %s", record.kernel_id, problem)
            self._keeper.reconcile_soon()
        except Exception:
            log.exception("kernel=%s its lease is not given back yet", record.kernel_id)
            self._keeper.reconcile_soon()
        record.state, record.reason = "exited", error.user_message
        self._events.publish(
            "cancelled" if isinstance(error, Cancelled) else "failed",
            record.view(self._queue),
            error.user_message,
        )
        if not keep_lease or lease is None:
            self._keeper.drop(record, error.user_message)

    def _out_of_time(self, ticket: Ticket, decision: Decision | None, timeout_s: float) -> NoNodeNow:
        position, waits_for = self._queue.place(ticket)
        return NoNodeNow(
            f"waited {timeout_s:g} s at position {position}: {waits_for or 'the cluster did not answer'}.",
            position=position,
            decision=decision.to_dict() if decision else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skipped:
    """A node that refused: not asked again for a while, or until its resources change."""

    node: Node
    since: float
    for_s: float

    @classmethod
    def after(cls, earlier: _Skipped | None, node: Node, now: float) -> _Skipped:
        """Twice as long as the last time, and never at the same time as others."""
        first_s, longest_s = _SKIP_S
        for_s = first_s if earlier is None else min(2 * earlier.for_s, longest_s)
        return cls(node=node, since=now, for_s=for_s * random.uniform(0.8, 1.2))

    def holds(self, snapshot: Snapshot, now: float) -> bool:
        return now - self.since < self.for_s and _is_as_it_was(self.node, snapshot)


def _check_wanted(record: Record) -> None:
    """Before Python 3.12 `asyncio.wait_for` loses a cancellation that meets its result: it is found here."""
    if record.is_taken_back:
        raise asyncio.CancelledError


def no_node(decision: Decision) -> NoNodeNow | NoNodeEver:
    """The error for a decision without a placement."""
    kind = NoNodeEver if decision.is_never else NoNodeNow
    return kind(f"{decision.reason}.", decision=decision.to_dict())


def _line(record: Record) -> Hashable:
    """Requests for the same under the same policy wait in one line; who asks for no promise waits behind nobody."""
    request = record.request
    amounts = (request.cpus, request.memory_bytes, request.gpus, *sorted(request.resources.items()))
    if not any(amounts):
        return record.kernel_id
    labels = tuple(sorted(request.labels.items()))
    return amounts, request.gpu_models, labels, request.tolerates, request.policy


def _is_as_it_was(node: Node, snapshot: Snapshot) -> bool:
    """Whether a node that refused still has the same resources promised: it would refuse again."""
    if node.id not in snapshot:
        return False
    now = snapshot.node(node.id)

    def promised(which: Node) -> tuple[Any, ...]:
        devices = tuple(device.promised for device in which.devices)
        sums = which.cpus_promised, which.memory_promised_bytes, which.gpus_promised
        return *sums, which.resources_promised, devices

    return promised(now) == promised(node)
