"""The table of kernels, kept true: read back from leases and agents, and corrected by what they tell.

It holds the invariant: no kernel without a lease, no lease without a kernel (beyond a grace), nor either
without somebody who wants it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from roost.launchers.protocol.messages import AgentEvent, KernelProcess
from roost.launchers.protocol.rpc import RpcError
from roost.placement.model import Request
from roost.scheduler.backends.base import Lease
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import BackendUnavailable, RoostError, UnknownKernel
from roost.scheduler.service.messages import Kernel, StartKernel

from .cluster import Cluster
from .events import EventStream
from .kernel_record import Record
from .owner_watch import OwnerKey, Owners, owner_key
from .queue import Queue

log = logging.getLogger(__name__)

_REMEMBERED = 500
_RETRY_S = 5.0
_ANSWER_S = 5.0
"""An agent that takes longer to say what it holds keeps nobody from the kernels of others."""
_STOP_GRACE_S = 2.0


class Ending(Protocol):
    """What the scheduler does for the keeper."""

    async def cancel(self, kernel_id: str, launch_id: str = "") -> None: ...

    async def stop(self, kernel_id: str, grace_s: float, reason: str = "") -> Kernel: ...


class Keeper:
    """Records by kernel id; `ended` has the last of those that are gone, as they were at their end."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        events: EventStream,
        queue: Queue,
        *,
        name: str,
        ending: Ending,
    ) -> None:
        self.records: dict[str, Record] = {}
        self.ended: OrderedDict[str, Kernel] = OrderedDict()
        self.unreachable: frozenset[str] = frozenset()
        self.owners = Owners(on_death=self._on_owner_death)
        self._cluster = cluster
        self._settings = settings
        self._events = events
        self._queue = queue
        self._name = name
        self._ending = ending
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._is_reading = False
        self._must_read = False
        self._given_back: OrderedDict[str, None] = OrderedDict()  # a reading may show them for a while

    async def open(self) -> None:
        """Read back what is there. Called once the backend is open."""
        self._cluster.agents.listen(self._on_agent)
        await self._read_back()
        self._spawn(self._watch())

    async def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self.owners.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lease_id(self, kernel_id: str, launch_id: str) -> str:
        """The id of the lease that a start takes: the same whenever that start is repeated."""
        return f"{self._prefix(kernel_id)}{launch_id}"

    def add(self, start: StartKernel, request: Request) -> Record:
        """A record for a kernel that is asked for."""
        record = Record(
            kernel_id=start.kernel_id,
            launch_id=start.launch_id,
            owner=start.owner,
            request=request,
            created_at=time.time(),
        )
        self.records[start.kernel_id] = record
        return record

    def drop(self, record: Record, reason: str) -> None:
        """The kernel is gone for good, and its lease with it. May be repeated."""
        if self.records.get(record.kernel_id) is not record:
            return
        del self.records[record.kernel_id]
        record.state = "exited"
        own = record.process.reason if record.process is not None and not record.process.is_running else ""
        record.reason = record.reason or own or reason
        self.ended[record.kernel_id] = record.view(self._queue)
        while len(self.ended) > _REMEMBERED:
            self.ended.popitem(last=False)
        if record.lease is not None:
            self._note_given_back(record.lease.id)
            self._events.publish("released", record.view(self._queue), record.reason)
        if not self.owners.is_alive(record.owner):
            self._forget_owner(owner_key(record.owner))

    def ended_id(self, prefix: str) -> str:
        """The id of the last kernel that ended, of those whose ids begin so; `prefix` itself if there is none."""
        return next((known for known in reversed(self.ended) if prefix and known.startswith(prefix)), prefix)

    def exited(self, record: Record, process: KernelProcess) -> None:
        """The kernel's process has ended by itself, or was stopped."""
        if process.launch_id != record.launch_id or record.state == "exited":
            return
        record.process, record.state = process, "exited"
        self._events.publish("exited", record.view(self._queue), process.reason)
        if not self.owners.is_alive(record.owner):
            self._spawn(self._stop(record, "ended, and so had its owner"))

    def reconcile_soon(self, delay_s: float = 0.0) -> None:
        """Read everything back again: the connection to an agent was lost, or something could not be undone."""
        self._later(delay_s, lambda: self._spawn(self._read_back_or_retry()))

    async def _read_back_or_retry(self) -> None:
        try:
            await self._read_back()
        except (RoostError, RpcError, asyncio.TimeoutError) as problem:
            log.warning("cannot read kernels back, trying again in %g s: %s", _RETRY_S, problem)
            self.reconcile_soon(_RETRY_S)

    async def _read_back(self) -> None:
        """Reconcile until nobody has asked for it in the meantime."""
        self._must_read = True
        if self._is_reading:
            return
        self._is_reading = True
        try:
            while self._must_read:
                self._must_read = False
                await self._reconcile()
        finally:
            self._is_reading = False

    async def _reconcile(self) -> None:
        """Make the table what leases and agents say. Starts under way are left alone: they find out themselves."""
        before: dict[int, Lease | None] = {
            id(record): record.lease for record in self.records.values() if record.start is None
        }
        reading = await self._cluster.backend.leases()
        leases = [lease for lease in reading.leases if self.is_own(lease)]
        processes, silent = await self.processes(leases)
        self.unreachable = reading.unreachable
        silent |= reading.unreachable
        if silent:  # what runs there is unknown, not gone
            log.warning("agents do not answer: %s", ", ".join(sorted(silent)))
            self.reconcile_soon(_RETRY_S)
        for held in leases:
            record = self.records.get(held.kernel_id)
            if record is None and held.id in self._given_back:
                self._spawn(self._release_again(held))
                continue
            if record is None:
                record = self.records[held.kernel_id] = self._record_of(held)
            elif record.start is not None or record.lease is None:
                continue
            elif record.lease.id != held.id:
                self._spawn(self._release_again(held))  # of an earlier start
                continue
            record.lease = held  # more may be known of it now
            if not record.owner.pid:
                record.owner = held.owner
                self.owners.watch(held.owner)
            process = processes.get(held.id)
            if process is not None:
                self._update(record, process)
            elif held.node_id not in silent and (record.process is None or not held.node_id):
                self._later(self._settings.claim_grace_s, partial(self._release_unclaimed, record))
        found = {held.id for held in leases}
        for record in list(self.records.values()):
            lease = before.get(id(record))
            is_settled = record.start is None and lease is record.lease
            if is_settled and lease is not None and lease.id not in found:
                self.drop(record, "its lease is gone")
                self._given_back.pop(lease.id, None)  # nobody did: it may be found again
        self._queue.wake()

    async def processes(self, leases: list[Lease]) -> tuple[dict[str, KernelProcess], set[str]]:
        """By lease id, the kernels of all agents that hold these leases; and the nodes whose agents do not answer."""
        nodes = {lease.node_id: lease for lease in leases if lease.node_id}

        async def kernels(lease: Lease) -> tuple[KernelProcess, ...]:
            call = self._cluster.call(lease, lambda agent: agent.holdings())
            return (await asyncio.wait_for(call, _ANSWER_S)).kernels

        answers = await asyncio.gather(*map(kernels, nodes.values()), return_exceptions=True)
        processes, silent = {}, set()
        for node_id, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, BackendUnavailable | asyncio.TimeoutError | UnknownKernel):
                silent.add(node_id)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                processes.update({process.lease_id: process for process in answer})
        return processes, silent

    def _record_of(self, lease: Lease) -> Record:
        self.owners.watch(lease.owner)
        return Record(
            kernel_id=lease.kernel_id,
            launch_id=lease.id.removeprefix(self._prefix(lease.kernel_id)),
            owner=lease.owner,
            request=lease.request,
            created_at=time.time(),
            state="starting",
            lease=lease,
        )

    def _update(self, record: Record, process: KernelProcess) -> None:
        known = record.process
        is_new = known is None
        if known is not None and known.launch_id == process.launch_id and not known.is_running:
            return  # what has ended stays so: an event can overtake the answer that was read before it
        record.launch_id = process.launch_id
        if process.is_running:
            record.process, record.state = process, "running"
            if is_new:
                record.created_at = process.launched_at
                self._events.publish("running", record.view(self._queue), "read back")
        else:
            self.exited(record, process)

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        if event is None:
            if self.records:
                self.reconcile_soon()
            return
        if event.kind == "lost":  # what ends next, ends for this reason
            for record in self.records.values():
                if record.start is None and record.lease is not None and record.lease.id == event.lease_id:
                    record.reason = record.reason or _taken_back(event.reason)
            return
        if event.kind == "released":
            self._note_given_back(event.lease_id)
            for record in list(self.records.values()):
                if record.start is None and record.lease is not None and record.lease.id == event.lease_id:
                    self.drop(record, "its lease was given back")
            return
        if event.kernel is not None:
            self._on_process(event.kernel)

    def _on_process(self, process: KernelProcess) -> None:
        record = self.records.get(process.kernel_id)
        if record is None or record.lease is None or record.lease.id != process.lease_id:
            return
        if record.start is None:
            self._update(record, process)
        elif not process.is_running:
            record.late_exit = process

    async def _watch(self) -> None:
        async for event in self._cluster.backend.events():
            if event.kind in ("nodes", "lease_held", "lease_pending"):
                self._queue.wake()
                continue
            if event.kind == "resync":
                self.reconcile_soon()
                continue
            for record in list(self.records.values()):
                if record.lease is not None and record.lease.id == event.lease_id:
                    self._spawn(self._stop(record, _taken_back(event.reason)))

    def _on_owner_death(self, key: OwnerKey) -> None:
        if not self._of_owner(key):
            self._forget_owner(key)
            return
        self._later(self._settings.owner_grace_s, lambda: self._spawn(self._end_starts(key)))
        self._later(self._settings.orphan_after_s, lambda: self._spawn(self._cull(key)))

    async def _end_starts(self, key: OwnerKey) -> None:
        """The owner has been gone for the grace: nobody waits for its starts, nor wants what it cannot adopt."""
        starts_first = sorted(self._of_owner(key), key=lambda record: record.start is None)
        for record in starts_first:  # or they would get what the others free
            if record.start is not None or not record.owner.can_adopt:
                await self._stop(
                    record, f"its owner {record.owner.application or record.owner.user} has ended"
                )

    async def _cull(self, key: OwnerKey) -> None:
        for record in self._of_owner(key):
            reason = f"culled: nobody has come back for it for {self._settings.orphan_after_s:g} s"
            self._events.publish("cull", record.view(self._queue), reason)
            await self._stop(record, reason)

    def end_later(self, record: Record, reason: str) -> None:
        """End a kernel whose agent cannot be reached now, unless it is started anew before."""
        launch_id = record.launch_id

        def retry() -> None:
            if record.launch_id == launch_id:
                self._spawn(self._stop(record, reason))

        self._later(_RETRY_S, retry)

    async def _stop(self, record: Record, reason: str) -> None:
        try:
            if self.records.get(record.kernel_id) is record:
                log.info("kernel=%s is ended: %s", record.kernel_id, reason)
                await self._ending.stop(record.kernel_id, _STOP_GRACE_S, reason)
        except BackendUnavailable as problem:
            log.warning("kernel=%s could not be ended, trying again: %s", record.kernel_id, problem)
        except RoostError as problem:
            log.error("kernel=%s could not be ended: %s", record.kernel_id, problem)
            self.reconcile_soon(_RETRY_S)

    def _release_unclaimed(self, record: Record) -> None:
        if record.start is not None:
            return
        if record.lease is not None and not record.lease.node_id:
            self._spawn(self._stop(record, "its node has left the cluster"))
        elif record.process is None:
            self._spawn(self._stop(record, "its start was not repeated"))

    def _note_given_back(self, lease_id: str) -> None:
        self._given_back[lease_id] = None
        while len(self._given_back) > _REMEMBERED:
            self._given_back.popitem(last=False)

    async def _release_again(self, lease: Lease) -> None:
        """What was given back is still there, or was when this was read: no kernel comes back for that."""
        try:
            await self._cluster.backend.release(lease)
        except RoostError as problem:
            log.warning("lease=%s is not given back yet, trying again: %s", lease.id, problem)
            self.reconcile_soon(_RETRY_S)

    def _of_owner(self, key: OwnerKey) -> list[Record]:
        return [record for record in self.records.values() if owner_key(record.owner) == key]

    def _forget_owner(self, key: OwnerKey) -> None:
        if not self._of_owner(key):
            self.owners.forget(key)

    def _prefix(self, kernel_id: str) -> str:
        return f"roost:{kernel_id}:{self._name}/"

    def is_own(self, lease: Lease) -> bool:
        """Whether this scheduler (or an earlier one of its name) has taken that lease."""
        return lease.id.startswith(self._prefix(lease.kernel_id))

    def _later(self, delay_s: float, call: Callable[[], object]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(delay_s, run)
        self._timers.add(timer)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the scheduler failed", exc_info=task.exception())


def _taken_back(reason: str) -> str:
    return f"the cluster took its lease back: {reason}"
