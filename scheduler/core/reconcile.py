"""Keeps the table of kernels true: after a short grace, each kernel has a lease, and each lease has a kernel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import Timers, ask_all, cancel_all, spawn
from roost.launchers.protocol.messages import AgentEvent, KernelProcess, Lease
from roost.launchers.protocol.rpc import RpcError
from roost.scheduler.errors import RoostError

from .backend_access import BackendAccess
from .ender import RETRY_S, KernelEnder
from .kernel_record import KernelRecord, Phase
from .kernel_table import KernelTable
from .owner_watch import OwnerWatch

log = logging.getLogger(__name__)

T = TypeVar("T")

_REASON_S = 3.0
"""How long the manager may take to say why it ends a lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The result of reading a cluster: its leases, and the kernel processes in them by lease id.

    `shown` has the ids of all leases, also of those that were not asked for.
    `unanswered` has the ids of leases whose agent has not answered. `unreachable` names agents that have not answered.
    """

    leases: Sequence[Lease]
    shown: Set[str]
    processes: Mapping[str, KernelProcess]
    unanswered: Set[str]
    unreachable: Set[str]


class Reconciler:
    """Reads leases and kernels back, and follows the events of the backend and of the agents."""

    def __init__(
        self,
        access: BackendAccess,
        table: KernelTable,
        ender: KernelEnder,
        owners: OwnerWatch,
        timers: Timers,
        claim_grace_s: float,
    ) -> None:
        self.unreachable: Set[str] = frozenset()
        """The names of agents that could not report their leases: kernels that are not listed may live there."""
        self._access = access
        self._table = table
        self._ender = ender
        self._owners = owners
        self._timers = timers
        self._claim_grace_s = claim_grace_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reading = asyncio.Lock()
        self._must_read = False
        self._unheard: Set[str] = frozenset()
        """The agents that were unreachable at the last reconciliation."""
        self._unknown: list[AgentEvent] | None = None
        """While leases are read: the events about unknown kernels, which the reading may find. Otherwise None."""

    async def open(self) -> None:
        """Read back the kernels of earlier schedulers. The backend must be open."""
        self._access.agents.listen(self._on_agent)
        self._table.book.listen(self._on_lease)
        await self._read_back()
        keep_running(self._follow_backend, self._tasks, log, "the reading of the cluster's events")

    async def close(self) -> None:
        await cancel_all(self._tasks)

    def soon(self, delay_s: float = 0.0) -> None:
        """Reconcile again after `delay_s`, for example because an agent was lost or an undo failed."""
        what = "the comparison of kernels and leases"
        self._timers.later(delay_s, lambda: keep_running(self._read_back_or_retry, self._tasks, log, what))

    async def read(self, *, only_own: bool) -> Reading:
        """Read all leases, or only this scheduler's, and ask each of their agents once for the processes in them."""
        reading = await self._access.backend.leases()
        leases = [lease for lease in reading.leases if not only_own or self._table.is_own(lease)]
        agents, unanswered = await self._access.find_agents(
            [lease for lease in leases if lease.id not in reading.processes]
        )
        unanswered |= reading.unanswered
        found = dict(reading.processes)
        answers = await ask_all(
            lambda held: self._access.ask_agent(held[0], lambda agent: agent.holdings()), agents.values()
        )
        for held, answer in zip(agents.values(), answers, strict=True):
            if answer is None:
                unanswered |= {lease.id for lease in held}
            else:
                found |= answer.by_lease()
        self.unreachable = reading.unreachable
        names = {lease.node_id or lease.id for lease in leases if lease.id in unanswered}
        return Reading(
            leases=leases,
            shown={lease.id for lease in reading.leases},
            processes={lease_id: process for lease_id, process in found.items() if process is not None},
            unanswered=unanswered,
            unreachable=names | reading.unreachable,
        )

    async def _read_back_or_retry(self) -> None:
        try:
            await self._read_back()
        except (RoostError, RpcError, asyncio.TimeoutError) as problem:
            log.warning("kernels cannot be read back, trying again in %g s: %s", RETRY_S, problem)
            self.soon(RETRY_S)

    async def _read_back(self) -> None:
        """Reconcile, one reading at a time. A reading that begins after this call serves this call too."""
        self._must_read = True
        async with self._reading:
            if self._must_read:
                self._must_read = False
                await self._reconcile()

    async def _reconcile(self) -> None:
        before = {lease.id: lease for lease in self._table.book}
        self._unknown = []
        try:
            self._apply(await self.read(only_own=True), before)
        finally:
            events, self._unknown = self._unknown, None
        for event in events:
            self._on_event(event)
        self._table.queue.wake()

    def _apply(self, reading: Reading, before: Mapping[str, Lease]) -> None:
        """Note what a reading shows. `before` are the leases that the book had when the reading began."""
        book = self._table.book
        if reading.unreachable - self._unheard:
            log.warning("agents are unreachable: %s", ", ".join(sorted(reading.unreachable)))
        if reading.unreachable or not all(lease.owner.pid for lease in reading.leases):
            # An agent that was too slow for the backend may have answered the core: then its lease has no owner.
            self.soon(RETRY_S)
        for lease in reading.leases:
            # What an event or an answer has shown meanwhile is newer than the reading.
            if book.get(lease.id) is before.get(lease.id):
                book.show(lease)
            self._match(lease, reading.processes.get(lease.id), is_known=lease.id not in reading.unanswered)
        for lease_id, lease in before.items():  # a lease that was claimed meanwhile may miss in the reading
            if lease_id not in reading.shown and book.get(lease_id) is lease:
                book.miss(lease_id)
        heard, self._unheard = self._unheard - reading.unreachable, reading.unreachable
        if heard:  # who has asked for a kernel meanwhile knows only that it may live there
            self._table.events.publish("resync", detail=f"answered or left: {', '.join(sorted(heard))}")

    def _match(self, lease: Lease, process: KernelProcess | None, *, is_known: bool) -> None:
        """Compare one lease with its record, and correct the record or end the lease.

        `is_known` is True if the agent has answered; then `process` None means that there is no process.
        """
        record = self._table.get(lease.kernel_id)
        is_released = self._table.book.is_released(lease.id)
        if is_released and (record is None or record.lease_id != lease.id):
            self._ender.release_soon(lease)  # again: that has failed, or the cluster shows the lease late
            return
        lease = self._table.book.get(lease.id) or lease
        if record is None and self._is_unmissed(lease):
            self._ender.release_soon(lease)
            return
        if record is None:
            record = self._table.add_found(lease, is_known=is_known)
            self._owners.watch(lease.owner)
            if self._ender.is_due(lease, process):
                record.is_stopped = True  # Jupyter must not start it again
                self._ender.stop_soon(record, "stopped")
                return
        elif record.start is not None or record.lease is None or record.phase is Phase.ENDING:
            return  # a start under way finds out by itself
        elif record.lease_id != lease.id:
            self._ender.release_soon(lease)  # of an earlier start
            return
        if not record.owner.pid:  # found by its claim alone, which shows less
            record.owner, record.request = lease.owner, lease.request
            self._owners.watch(lease.owner)
        if lease.state == "lost":
            self._ender.stop_soon(record, _describe_loss(lease.reason))
        elif process is not None:
            self._table.update(record, process)
        elif is_known and record.process is None:
            self._timers.later(self._claim_grace_s, lambda: self._end_unclaimed(record))

    def _is_unmissed(self, lease: Lease) -> bool:
        """True if a lease is lost, and nobody waits for the reason: its holder has ended and does not come back."""
        return lease.state == "lost" and not (lease.owner.can_adopt or self._owners.holds(lease.owner))

    def _end_unclaimed(self, record: KernelRecord) -> None:
        if record.start is None and record.process is None:
            self._ender.stop_soon(record, "its start was not repeated")

    async def _follow_backend(self) -> None:
        async for event in self._access.backend.events():
            if event.kind == "nodes":
                self._table.queue.wake()
            elif event.kind == "resync":
                self.soon()
            elif (record := self._table.with_lease(event.lease_id)) is not None:
                if event.kind == "lease_warned":
                    record.warning = event.reason
                if record.prospect != event.reason:
                    record.prospect = event.reason
                    self._table.publish("warned", record, event.reason or "is in no danger any more")

    def _on_lease(self, lease: Lease) -> None:
        """Follow what the cluster shows of a lease: a grant, why it is still pending, or a loss."""
        record = self._table.with_lease(lease.id)
        is_shown = self._table.book.is_shown(lease.id)
        if record is None and is_shown and self._table.is_own(lease):
            if self._unknown is None:  # else the reading under way finds it
                self.soon()  # of an earlier service, whose claim has arrived late
        elif record is None:
            if not is_shown or lease.state == "lost":  # another service's
                self._table.book.drop(lease.id)
        elif record.held_back is not None:  # the reason of the loss is noted first
            record.held_back.append(partial(self._on_lease, lease))
        elif record.start is not None and record.phase in (Phase.CLAIMING, Phase.PENDING):
            record.lease_changed.set()
            if record.phase is Phase.PENDING and lease.state == "pending":
                self._table.publish("queued", record, lease.reason)
        elif not is_shown:
            if record.start is None:  # else its agent says that it knows no such lease
                self._table.drop(record, lease.reason)
        elif lease.state == "lost" and record.start is not None and self._has_left(lease):
            record.lease_changed.set()  # the start goes on with another node
        elif lease.state == "lost":
            self._ender.stop_soon(record, _describe_loss(lease.reason))
        elif lease.state == "held" and record.phase is Phase.PENDING:
            self.soon()  # its agent answers now, and may have a kernel

    def _has_left(self, lease: Lease) -> bool:
        """True if the node of a lost lease has left. A reading then shows no node if no agent of it is known."""
        return not lease.node_id or lease.node_id in self._access.backend.left_nodes()

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        if event is None:
            if self._table.records:
                self.soon()
        elif event.kind != "status":  # which is about a node, not about a kernel
            self._on_event(event)

    def _on_event(self, event: AgentEvent) -> None:
        kernel_id = event.kernel.kernel_id if event.kernel else ""
        record = self._table.get(kernel_id) or self._table.with_lease(event.lease_id)
        if record is None and self._unknown is not None and event.kind != "released":
            self._unknown.append(event)
        elif record is not None and record.held_back is not None:
            record.held_back.append(partial(self._on_event, event))
        elif event.kernel is not None:
            self._on_process(event.kernel)
        elif event.kind == "released":
            if record is not None and record.start is None:
                self._table.drop(record, "its lease was given back")
        elif event.kind == "warned" and record is not None:
            self._table.publish("warned", record, event.reason)
        elif event.kind == "lost" and record is not None and record.start is None:
            record.held_back = []
            spawn(self._read_loss(record, event.reason), self._tasks, log)

    async def _read_loss(self, record: KernelRecord, reason: str) -> None:
        """Ask the manager why a lease is lost, note the reason, then handle the events held back."""
        lease = record.lease
        assert lease is not None
        try:
            asked = self._access.backend.explain_loss(lease)
            reason = await asyncio.wait_for(asked, _REASON_S) or record.warning or reason
        except Exception as problem:
            if not isinstance(problem, (RoostError, asyncio.TimeoutError)):
                log.exception("lease=%s its loss cannot be explained", lease.id)
            log.info("lease=%s the manager does not say why it is lost: %r", lease.id, problem)
            reason = record.warning or reason
        if record.start is None:
            record.reason = record.reason or _describe_loss(reason)
        waiting, record.held_back = record.held_back or [], None
        for go_on in waiting:
            go_on()
        if self._table.holds(record):
            self.soon()  # the agent may have left without a word about its lease

    def _on_process(self, process: KernelProcess) -> None:
        record = self._table.get(process.kernel_id)
        if record is None or record.lease_id != process.lease_id:
            return
        if record.start is None:
            self._table.update(record, process)
        elif not process.is_running:
            record.start.late_exit = process


def _describe_loss(reason: str) -> str:
    return f"its lease is lost: {reason}"
