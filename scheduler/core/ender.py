"""The end of a kernel: its start is cancelled, its process is stopped, its lease is released.

If an agent is unreachable, the end of its kernel is tried again until it succeeds. A file keeps such an end for the
next scheduler.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from roost.launchers.daemon.file_input import take_json
from roost.launchers.daemon.private_files import write_private_json
from roost.launchers.daemon.tasks import Timers, cancel_all, join_shared, spawn, start_shared
from roost.launchers.protocol.messages import KernelProcess, Lease
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Kernel

from .backend_access import BackendAccess
from .kernel_record import KernelRecord
from .kernel_table import KernelTable

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""How long the scheduler waits before it tries a failed end, a failed release or a failed reading again."""
_STOP_GRACE_S = 2.0
_REMEMBERED = 500
"""At most this many kernels are remembered that are to end once they are found."""


class KernelEnder:
    """Ends kernels. Calls for the same kernel share one end. `file` keeps the ends that must be tried again."""

    def __init__(
        self, access: BackendAccess, table: KernelTable, timers: Timers, file: Path | None = None
    ) -> None:
        self._access = access
        self._table = table
        self._timers = timers
        self._tasks: set[asyncio.Task[Any]] = set()
        self._releasing: set[str] = set()
        """The ids of leases that `release_soon` releases now."""
        self._file = file
        known = take_json(file, log) if file else None
        self._due: dict[str, str] = {
            lease_id: launch_id for lease_id, launch_id in (known or {}).items() if isinstance(launch_id, str)
        }
        """The launch ids of kernels that could not be ended yet, by lease id."""
        self._unwanted = LastEntries[str, None](_REMEMBERED)
        """The ids of kernels to end as soon as they are found."""

    def is_due(self, lease: Lease, process: KernelProcess | None) -> bool:
        """True if the lease's kernel must be ended, or tried to be ended again, and no newer launch runs there."""
        if lease.kernel_id in self._unwanted:
            return True
        return lease.id in self._due and (process is None or process.launch_id == self._due[lease.id])

    def end_when_found(self, kernel_id: str) -> None:
        """End a kernel that may live where no agent answers now, once its agent does."""
        self._unwanted[kernel_id] = None

    def end_launch_when_found(self, lease_id: str, launch_id: str) -> None:
        """End the kernel of a launch that an earlier scheduler may have sent, once it is found. A file keeps this."""
        self._note_due(lease_id, launch_id)

    def want(self, kernel_id: str) -> None:
        """Note that a kernel of this id is wanted, because it is started."""
        self._unwanted.pop(kernel_id, None)

    def keep(self, record: KernelRecord) -> None:
        """Remember an end that goes on, also for the next scheduler. Its success removes the entry."""
        if record.end is not None and record.lease_id:
            self._note_due(record.lease_id, record.launch_id)

    async def close(self) -> None:
        await cancel_all(self._tasks)

    async def stop(self, record: KernelRecord, grace_s: float, reason: str) -> Kernel:
        """End a kernel or its start and release its lease.

        If this raises `RoostError`, the end is tried again later.
        """
        if record.end is None:
            record.end = start_shared(self._stop(record, grace_s, reason))
        return await join_shared(record.end)

    def stop_soon(self, record: KernelRecord, reason: str) -> None:
        spawn(self._stop_quietly(record, reason), self._tasks, log)

    async def _stop_quietly(self, record: KernelRecord, reason: str) -> None:
        if not self._table.holds(record):
            return
        log.info("kernel=%s is ended: %s", record.kernel_id, reason)
        try:
            await self.stop(record, _STOP_GRACE_S, reason)
        except RoostError as problem:
            log.warning("kernel=%s could not be ended, trying again: %s", record.kernel_id, problem)

    def release_soon(self, lease: Lease) -> None:
        """Release a lease that the cluster still reports, although no kernel uses it any more. May be repeated."""
        if lease.id not in self._releasing:
            self._releasing.add(lease.id)
            spawn(self._release(lease), self._tasks, log)

    async def _stop(self, record: KernelRecord, grace_s: float, reason: str) -> Kernel:
        lease: Lease | None = None
        try:
            if record.start is not None:
                await record.start.take_back(reason)
            lease = record.lease  # kept, because the cluster may lose it and the record be dropped meanwhile
            if lease is not None and self._table.holds(record):
                record.finish()
                if record.process is None or record.runs:
                    record.reason = reason
                if record.runs:
                    record.process = await self._access.end_process(lease, grace_s) or record.process
                try:
                    await self._access.backend.release(lease)
                except RoostError:
                    if self._table.holds(record):
                        raise
                    self.release_soon(
                        lease
                    )  # the agent has released it, so only its claim is left: try again
                self._note_due(lease.id, None)
            self._table.drop(record, reason)
            return self._table.show_ended(record)
        except Exception:
            if record.lease_id:
                self._note_due(record.lease_id, record.launch_id)
            self._stop_later(record, lease, reason)
            raise
        finally:
            record.end = None

    def _note_due(self, lease_id: str, launch_id: str | None) -> None:
        if self._due.get(lease_id) == launch_id:
            return
        if launch_id is None:
            del self._due[lease_id]
        else:
            self._due[lease_id] = launch_id
            for forgotten in list(self._due)[:-_REMEMBERED]:
                del self._due[forgotten]
        if self._file is not None:
            try:
                write_private_json(self._file, self._due)
            except OSError as problem:
                log.warning("%s cannot be written: %s", self._file, problem.strerror)

    def _stop_later(self, record: KernelRecord, lease: Lease | None, reason: str) -> None:
        """Try the end again later, unless the kernel is started again meanwhile."""
        launch_id = record.launch_id

        def retry() -> None:
            if record.launch_id == launch_id and self._table.holds(record):
                self.stop_soon(record, reason)
            elif record.launch_id == launch_id and lease is not None:
                self.release_soon(lease)  # the cluster has forgotten the lease, but its kernel may live

        self._timers.later(RETRY_S, retry)

    async def _release(self, lease: Lease) -> None:
        try:
            await self._access.backend.release(lease)
            self._note_due(lease.id, None)
        except RoostError as problem:
            log.warning("lease=%s is not released yet, trying again: %s", lease.id, problem)
            self._timers.later(RETRY_S, lambda: self.release_soon(lease), key=f"release {lease.id}")
        finally:
            self._releasing.discard(lease.id)
