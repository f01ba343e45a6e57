"""One start, from the queue through lease and launch to the running process, and its undo from any step.

Each step may be repeated: a lease's id contains the launch's id, and an agent gives a repeated launch the
same answer. If a scheduler is killed in between, the client repeats its call, and the next scheduler goes on
from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from roost.launchers.daemon.tasks import (
    backoff,
    cancel_all,
    join_shared,
    start_shared,
    wait_until_set,
)
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import KernelProcess
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.backends.agent_calls import LeaseGone
from roost.scheduler.backends.base import Lease
from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    LaunchError,
    LaunchTimeout,
    RoostError,
    UnknownKernel,
)
from roost.scheduler.messages import Kernel, StartKernel

from .backend_access import BackendAccess
from .ender import KernelEnder
from .kernel_record import KernelRecord, StartTask
from .kernel_table import KernelTable
from .lease_claim import LeaseClaimer, build_launch
from .reconcile import Reconciler

log = logging.getLogger(__name__)

_LEASE_GONE_S = (0.05, 5.0)
"""First and longest pause before a request is placed again because the agent does not know its lease."""
_LEAVES_S = 2.0
"""How long the manager may take to show that the node of an unreachable agent has left."""
_LEAST_S = 0.1
"""A start whose time in the queue ended while no service ran is tried once."""
_ANSWERS_S = 5.0
"""How much longer than a launch may take its agent may take to say so."""
_UNDO_S = 10.0
"""How long a start that has failed waits for its lease's release before it says so. The release goes on."""
_REMEMBERED = 1_000
"""At most this many failed starts are remembered."""


class StartRunner:
    """Runs starts, and remembers the errors of failed starts."""

    def __init__(
        self,
        access: BackendAccess,
        table: KernelTable,
        claimer: LeaseClaimer,
        reconciler: Reconciler,
        ender: KernelEnder,
    ) -> None:
        self._access = access
        self._table = table
        self._claimer = claimer
        self._reconciler = reconciler
        self._ender = ender
        self.failed = LastEntries[tuple[str, str], RoostError](_REMEMBERED)
        """The errors of failed starts, by kernel id and launch id. A repeated start gets the same error."""
        self._under_way: dict[str, KernelRecord] = {}
        self._is_closing = False

    async def close(self) -> None:
        """Abandon all starts without undoing them. The next scheduler goes on when clients repeat them."""
        self._is_closing = True
        starts = [record.start for record in self._under_way.values() if record.start is not None]
        await asyncio.gather(*(start.abandon() for start in starts))

    def begin(self, record: KernelRecord, start: StartKernel) -> StartTask:
        record.ask(start)
        record.start = StartTask(lambda task: self._run(record, start, task))
        self._under_way[record.kernel_id] = record
        return record.start

    def refuse(self, start: StartKernel, error: RoostError) -> None:
        """Note that this service does not allow a start that has waited at an earlier one."""
        record = self._table.add(start, start.request)
        record.kernel_name, record.reason = start.connection.kernel_name, error.user_message
        record.finish()
        self._table.publish("failed", record, error.user_message)
        self._table.drop(record, error.user_message)

    def list_waiting(self) -> list[KernelRecord]:
        """Return the records of starts that wait for a lease."""
        return [record for record in self._under_way.values() if record.is_waiting]

    async def _run(self, record: KernelRecord, start: StartKernel, task: StartTask) -> Kernel:
        lease_id = self._table.lease_id(start.kernel_id, start.launch_id)
        is_restart = record.lease_id not in ("", lease_id)  # which is of an earlier launch
        # A start that has left the queue may have waited for a new node.
        waited_s = start.waited_s if record.lease is None else 0.0
        deadline = time.monotonic() + max(_LEAST_S, start.wait_s - waited_s)
        try:
            try:
                record.check_wanted()
                process = await self._bring_up(record, start, deadline)
                record.check_wanted()
                if not process.is_running:  # its end was reported before its agent was connected
                    task.late_exit = process
                self._table.ran(record, process)
                self._table.publish("running", record)
                return record.view(self._table.queue, with_connection=True)
            except asyncio.CancelledError:
                if self._is_closing:
                    raise
                why = f": {task.reason}" if task.reason else ""
                error: RoostError = Cancelled(f"the start of kernel {start.kernel_id} was taken back{why}.")
            except RoostError as problem:
                error = problem
            except Exception as problem:  # a defect, ours or a policy's: nothing may stay behind
                log.exception("kernel=%s its start failed", record.kernel_id)
                error = LaunchError(
                    f"the scheduler failed to start the kernel ({type(problem).__name__}: {problem}); "
                    "its log says more."
                )
            task.is_taken_back = True  # the start undoes itself already
            await self._undo(record, start, error, is_restart=is_restart)
            raise error
        finally:
            record.start = None
            self._under_way.pop(record.kernel_id, None)
            if task.late_exit is not None:  # the kernel ended before its start did
                self._table.exited(record, task.late_exit)

    async def _bring_up(self, record: KernelRecord, start: StartKernel, deadline: float) -> KernelProcess:
        has_tried = bool(start.asked_at) or record.lease is not None
        for pause_s in backoff(*_LEASE_GONE_S):
            if record.lease is not None and self._table.book.is_released(record.lease_id):
                await self._access.backend.release(
                    record.lease
                )  # an earlier end of the kernel has failed there
                record.refuse()
            if record.lease is None or record.lease.state == "pending":
                deadline = await self._claimer.take(record, start, deadline, has_tried=has_tried)
                has_tried = True
            else:  # a restart in the lease of an earlier launch
                record.launch()
            assert record.lease is not None
            record.check_wanted()
            launch_by = (
                deadline if start.queue_timeout_s is None else time.monotonic() + start.launch_timeout_s
            )
            if record.lease.owner != record.owner:  # a restart by another application
                await self._access.transfer(record.lease, record.owner)
            began = time.monotonic()
            try:
                process = await self._launch_if_node_stays(record, record.lease, start, launch_by)
            except LeaseGone as problem:
                await self._claimer.give_back(record, deadline)
                record.refuse()
                self._table.publish("conflict", record, str(problem))
                await asyncio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
                continue
            record.timing_ms["launched"] = (time.monotonic() - began) * 1e3
            return process
        raise AssertionError("pauses never end")

    async def _launch_if_node_stays(
        self, record: KernelRecord, lease: Lease, start: StartKernel, deadline: float
    ) -> KernelProcess:
        """Launch the kernel in the lease. Raises `LeaseGone` if the lease's node leaves the cluster meanwhile."""
        launching = asyncio.create_task(self._launch(lease, start, deadline))
        leaving = asyncio.create_task(record.lease_changed.wait())
        try:
            limit_s = deadline - time.monotonic() + _ANSWERS_S
            await asyncio.wait([launching, leaving], return_when=asyncio.FIRST_COMPLETED, timeout=limit_s)
            if not (launching.done() or leaving.done()):
                raise BackendUnavailable(f"the agent on {lease.node_id} does not answer.")
            if not record.lease_changed.is_set():
                return await launching
        except (BackendUnavailable, UnknownKernel):  # maybe because its node ends
            if not await wait_until_set(record.lease_changed, _LEAVES_S):
                raise
        finally:
            await cancel_all({launching, leaving})
        raise LeaseGone(f"its node {lease.node_id} has left the cluster")

    async def _launch(self, lease: Lease, start: StartKernel, deadline: float) -> KernelProcess:
        """Launch the kernel in the lease, or join the launch that began with the claim.

        If the connection to the agent is lost, repeat the launch.
        """

        late = LaunchTimeout(f"kernel {start.kernel_id} did not start within {start.launch_timeout_s:g} s.")

        def find_remaining_s() -> float:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise late
            return remaining_s

        async def launch(agent: AgentClient) -> KernelProcess:
            ready = build_launch(start, lease.id, find_remaining_s(), self._claimer.journal)
            return await agent.launch(replace(ready, env=env))

        try:
            preparing = self._access.backend.environment(lease)
            env = {**start.env, **await asyncio.wait_for(preparing, find_remaining_s())}
        except asyncio.TimeoutError:
            raise late from None
        return await self._access.call(lease, launch)

    async def _undo(
        self, record: KernelRecord, start: StartKernel, error: RoostError, *, is_restart: bool
    ) -> None:
        """Give back what the start has taken. A restart keeps its lease, which the agent releases after a grace."""
        self.failed[record.kernel_id, record.launch_id] = error
        lease = record.lease
        if lease is None and start.asked_at:  # an earlier scheduler may have taken a lease
            lease_id = self._table.lease_id(start.kernel_id, start.launch_id)
            self._ender.end_launch_when_found(lease_id, start.launch_id)
        is_held = lease is not None and lease.state == "held" and not self._table.book.is_released(lease.id)
        keeps_lease = is_restart and is_held
        try:
            undoing: Coroutine[Any, Any, object] | None = None
            if lease is not None and keeps_lease:
                undoing = self._access.end_process(lease, 0.0)
            elif lease is not None:
                undoing = self._access.backend.release(lease)
            if undoing is not None:
                # The end of the process has no limit: it must not meet the next launch.
                limit_s = None if keeps_lease else _UNDO_S
                await asyncio.wait_for(join_shared(start_shared(undoing)), limit_s)
        except (RoostError, asyncio.TimeoutError) as problem:
            why = str(problem) or f"no answer for {_UNDO_S:g} s"
            log.error("kernel=%s its lease is not released yet: %s", record.kernel_id, why)
            self._reconciler.soon()
        except Exception:
            log.exception("kernel=%s its lease is not released yet", record.kernel_id)
            self._reconciler.soon()
        if keeps_lease:
            record.fail_restart(error.user_message)
        else:
            record.finish()
            record.reason = error.user_message
        is_cancelled = isinstance(error, Cancelled)
        self._table.publish("cancelled" if is_cancelled else "failed", record, error.user_message)
        if not keeps_lease:
            self._table.drop(record, error.user_message)
