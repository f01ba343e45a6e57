"""All kernels that the scheduler knows, and the last ones that have ended. Every change becomes an event."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from roost.launchers.protocol.messages import KernelProcess, Lease
from roost.placement.model import Request
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.backends.lease_book import LeaseBook
from roost.scheduler.messages import EventKind, Kernel, KernelState, StartKernel

from .ended_kernels import EndedKernels
from .events import EventStream
from .kernel_record import KernelRecord, Phase
from .queue import Queue

Listener = Callable[[KernelRecord], None]

_SHOWN_LATE_S = 2.0
"""How late a cluster may show that a lease is free. Ray: up to 1 s."""
_REMEMBERED = 500
"""At most this many leases that were given back are remembered."""

Change = Literal["ran", "exited", "dropped"]
"""A kernel is reported as running, its process has ended, or its record is dropped."""


class KernelTable:
    """All kernels: `records` has their records by kernel id, and `ended` has the last kernels that are gone.

    `name` marks the leases of this scheduler in the `book`.
    """

    def __init__(
        self, queue: Queue, events: EventStream, book: LeaseBook, ended: EndedKernels, *, name: str
    ) -> None:
        self.records: dict[str, KernelRecord] = {}
        self.ended = ended
        self._given_back = LastEntries[str, tuple[float, Lease]](_REMEMBERED)
        """The leases of the last kernels that have ended, by id, and when that was (`time.monotonic`)."""
        self._listeners: dict[Change, list[Listener]] = {"ran": [], "exited": [], "dropped": []}
        self.queue = queue
        self.events = events
        self.book = book
        self._name = name

    def listen(self, change: Change, listener: Listener) -> None:
        """Call `listener` with the kernel's record after each such change from now on. It must not raise."""
        self._listeners[change].append(listener)

    def lease_id(self, kernel_id: str, launch_id: str) -> str:
        """Return the id of the lease that a start takes: the same id whenever that start is repeated."""
        return f"{self._prefix(kernel_id)}{launch_id}"

    def held_lately(self) -> list[Lease]:
        """Return the leases of all kernels, with those of a moment ago: a cluster shows late that they are free."""
        since = time.monotonic() - _SHOWN_LATE_S
        held = [record.lease for record in self.records.values() if record.lease is not None]
        return [*held, *(lease for at, lease in self._given_back.values() if at > since)]

    def is_own(self, lease: Lease) -> bool:
        """True if this scheduler, or an earlier one with its name, has taken the lease."""
        return lease.id.startswith(self._prefix(lease.kernel_id))

    def get(self, kernel_id: str) -> KernelRecord | None:
        return self.records.get(kernel_id)

    def holds(self, record: KernelRecord) -> bool:
        return self.records.get(record.kernel_id) is record

    def with_lease(self, lease_id: str) -> KernelRecord | None:
        """Return the record that has this lease, or None. The lease's id contains the kernel's id."""
        parts = lease_id.split(":")
        for length in range(2, len(parts)):  # the id of a kernel may have colons
            record = self.records.get(":".join(parts[1:length]))
            if record is not None and record.lease_id == lease_id:
                return record
        return None

    def add(self, start: StartKernel, request: Request) -> KernelRecord:
        record = KernelRecord(
            book=self.book,
            kernel_id=start.kernel_id,
            launch_id=start.launch_id,
            owner=start.owner,
            request=request,
            created_at=start.asked_at or time.time(),
        )
        self.records[start.kernel_id] = record
        return record

    def add_found(self, lease: Lease, *, is_known: bool) -> KernelRecord:
        """Add a record for a lease that an earlier scheduler has left.

        `is_known` is False if a kernel may run in it, and its agent has not answered.
        """
        record = KernelRecord(
            book=self.book,
            kernel_id=lease.kernel_id,
            launch_id=lease.id.removeprefix(self._prefix(lease.kernel_id)),
            owner=lease.owner,
            request=lease.request,
            created_at=lease.asked_at or time.time(),
            phase=Phase.PENDING if lease.state == "pending" and is_known else Phase.UNCLAIMED,
            lease_id=lease.id,
        )
        self.records[lease.kernel_id] = record
        return record

    def publish(self, kind: EventKind, record: KernelRecord, detail: str = "") -> None:
        self.events.publish(kind, record.view(self.queue), detail)

    def update(self, record: KernelRecord, process: KernelProcess) -> None:
        known = record.process
        if known is not None and known.launch_id == process.launch_id and not known.is_running:
            return  # the event of its end can overtake an answer that was read before the end
        if (
            known is not None
            and known.launch_id != process.launch_id
            and process.launched_at < known.launched_at
        ):
            return  # an answer that was read before a restart can be overtaken by it
        if not process.is_running:
            # A record that was read back may have an earlier launch, and `exited` ignores the ends of other launches.
            record.launch_id = process.launch_id
            self.exited(record, process)
        elif record.phase is not Phase.ENDING:
            self.ran(record, process)
            if known is None:
                record.created_at = min(record.created_at, process.launched_at)
                self.publish("running", record, "read back")

    def ran(self, record: KernelRecord, process: KernelProcess) -> None:
        """Note that a kernel runs. May be repeated."""
        record.run(process)
        self.ended.forget(record.kernel_id)
        self._report("ran", record)

    def exited(self, record: KernelRecord, process: KernelProcess) -> None:
        # The end of an earlier launch can be reported late, and the same end by an event and by an answer.
        if process.launch_id != record.launch_id or record.phase is Phase.EXITED or not self.holds(record):
            return
        if record.phase is Phase.ENDING:  # the record goes once its lease is released
            record.process = process
        else:
            record.exit(process)
        # Published before the listeners run, because a listener may end the kernel: those events must come later.
        self.publish("exited", record, process.reason)
        self._report("exited", record)

    def drop(self, record: KernelRecord, reason: str) -> None:
        """Forget a kernel that is gone for good, with its lease. May be repeated."""
        if not self.holds(record):
            return
        record.finish()
        del self.records[record.kernel_id]
        own = record.process.reason if record.process is not None and not record.runs else ""
        record.reason = record.reason or own or reason
        # Noted before the event: a client that gets the event may ask for the kernel at once.
        ended = self.show_ended(record)
        self.ended.add(ended)
        if record.lease is not None:
            self._given_back[record.lease.id] = time.monotonic(), record.lease
        if record.lease_id:
            if not self.book.is_released(record.lease_id):
                self.book.drop(record.lease_id)
            self.events.publish("released", ended, record.reason)
        self._report("dropped", record)

    def show_ended(self, record: KernelRecord) -> Kernel:
        """Return a kernel that is gone as users see it."""
        return replace(record.view(self.queue), state="exited")

    def count(self) -> Counter[tuple[KernelState, str]]:
        """Return how many kernels there are in each state, by user."""
        return Counter((record.state, record.owner.user) for record in self.records.values())

    def _report(self, change: Change, record: KernelRecord) -> None:
        for listener in self._listeners[change]:
            listener(record)

    def _prefix(self, kernel_id: str) -> str:
        return f"roost:{kernel_id}:{self._name}/"
