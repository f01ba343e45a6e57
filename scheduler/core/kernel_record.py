"""One kernel as the scheduler holds it, and the phases that it goes through.

Everything here can be read back from leases and agents. Each transition has one method; `_NEXT` lists the legal ones:

    QUEUED ─→ CLAIMING ─→ LAUNCHING ─→ RUNNING ─→ EXITED ─→ LAUNCHING (a restart in the same lease)
       ↑         │  └─→ PENDING ─↗         │
       └─────────┴────────┴────────────────┘      the manager refused, or the lease was lost before the launch
    UNCLAIMED    a lease without a process, found after the scheduler's restart
    ENDING       from every phase; the record is dropped once its lease is released, unless that fails and a new start
                 of the kernel comes first: it goes on in the lease, or in the queue if the lease is released
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from roost.launchers.daemon.tasks import join_shared, start_shared
from roost.launchers.protocol.messages import KernelProcess, Lease, Owner
from roost.placement.model import Request
from roost.scheduler.backends.lease_book import LeaseBook
from roost.scheduler.messages import Kernel, KernelState, StartKernel

from .queue import Queue, Ticket


class Phase(Enum):
    QUEUED = auto()
    CLAIMING = auto()
    PENDING = auto()
    LAUNCHING = auto()
    RUNNING = auto()
    EXITED = auto()
    UNCLAIMED = auto()
    ENDING = auto()


_STATE: Mapping[Phase, KernelState] = {
    Phase.QUEUED: "queued",
    Phase.CLAIMING: "queued",
    Phase.PENDING: "queued",
    Phase.LAUNCHING: "starting",
    Phase.RUNNING: "running",
    Phase.EXITED: "exited",
    Phase.UNCLAIMED: "unknown",
    Phase.ENDING: "exited",
}
"""The state that users see in each phase."""

_NEXT: Mapping[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.CLAIMING, Phase.ENDING}),
    Phase.CLAIMING: frozenset({Phase.QUEUED, Phase.PENDING, Phase.LAUNCHING, Phase.ENDING}),
    Phase.PENDING: frozenset({Phase.QUEUED, Phase.LAUNCHING, Phase.RUNNING, Phase.EXITED, Phase.ENDING}),
    Phase.LAUNCHING: frozenset({Phase.QUEUED, Phase.RUNNING, Phase.EXITED, Phase.ENDING}),
    Phase.RUNNING: frozenset({Phase.EXITED, Phase.ENDING}),
    Phase.EXITED: frozenset({Phase.PENDING, Phase.LAUNCHING, Phase.RUNNING, Phase.ENDING}),
    Phase.UNCLAIMED: frozenset(set(Phase) - {Phase.CLAIMING, Phase.UNCLAIMED}),
    Phase.ENDING: frozenset({Phase.QUEUED, Phase.EXITED, Phase.PENDING, Phase.LAUNCHING}),
}


class StartTask:
    """The task that starts a kernel. If it is cancelled by `take_back`, it undoes its steps."""

    def __init__(self, run: Callable[[StartTask], Coroutine[Any, Any, Kernel]]) -> None:
        self.late_exit: KernelProcess | None = None
        self._is_begun = False
        self.is_taken_back = False
        self.reason = ""
        """Why the start was taken back, if its client did not ask for that."""
        self._task = start_shared(self._run(run))

    async def _run(self, run: Callable[[StartTask], Coroutine[Any, Any, Kernel]]) -> Kernel:
        self._is_begun = True
        return await run(self)

    async def result(self) -> Kernel:
        """Return the started kernel, or raise the start's error.

        Cancelling the waiter does not cancel the start.
        """
        return await join_shared(self._task)

    async def ended(self) -> None:
        await asyncio.wait([self._task])

    async def take_back(self, reason: str = "") -> None:
        """Cancel the start, and wait until everything that it took is given back. May be repeated."""
        self.reason = self.reason or reason
        if not self.is_taken_back:
            self.is_taken_back = True
            if self._is_begun:  # a task cancelled before its first step could not undo anything
                self._task.cancel()
        await self.ended()

    async def abandon(self) -> None:
        """Cancel the start without undoing it, for the next scheduler to go on."""
        self.is_taken_back = True
        self._task.cancel()
        await self.ended()


@dataclass(slots=True, kw_only=True, eq=False)
class KernelRecord:
    """A kernel, or a kernel that starts."""

    book: LeaseBook
    kernel_id: str
    launch_id: str
    owner: Owner
    request: Request
    created_at: float
    kernel_name: str = ""
    notebook: str = ""
    phase: Phase = Phase.QUEUED
    lease_id: str = ""
    """The lease that this kernel has or has claimed; empty while it has none."""
    process: KernelProcess | None = None
    ticket: Ticket | None = None
    start: StartTask | None = None
    """Set while a start runs."""
    end: asyncio.Task[Kernel] | None = None
    """Set while the kernel is ended."""
    decision: Mapping[str, Any] | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    is_stopped: bool = False
    """True if the kernel was stopped on purpose or because it was idle: roost must not restart it by itself."""
    warning: str = ""
    """Why the manager has warned that it will take the lease back; empty if it has not warned."""
    prospect: str = ""
    """What will end the kernel soon, as far as its cluster shows; see `Kernel.prospect`."""
    idle_prospect: str = ""
    """The same of a kernel that is idle."""
    adopted_at: float | None = None
    unheld_since: float | None = None
    """When the kernel's last owner ended (`time.monotonic`); -inf if nobody saw the end, None if no owner has ended.

    An adoption does not reset this. The end of an owner that held the kernel for a short time only does not
    change it, because that owner's clients had no time to come back.
    """
    held_back: list[Callable[[], None]] | None = None
    """What to do once the manager has given the reason for a lost lease; None if nothing waits for that."""
    lease_changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set if the lease of a start has changed: its claim is decided, or its node has left during the launch."""

    @property
    def lease(self) -> Lease | None:
        """The lease as the book has it; None if the kernel has none."""
        return self.book.get(self.lease_id)

    @property
    def runs(self) -> bool:
        """True if the kernel's process runs, as far as its agent has reported."""
        return self.process is not None and self.process.is_running

    @property
    def state(self) -> KernelState:
        """The state that users see."""
        return "running" if self.phase is Phase.ENDING and self.runs else _STATE[self.phase]

    def check_wanted(self) -> None:
        """Raise `CancelledError` if the start was taken back: before Python 3.12 `wait_for` may lose a cancellation."""
        if self.start is not None and self.start.is_taken_back:
            raise asyncio.CancelledError

    # Transitions

    def ask(self, start: StartKernel) -> None:
        """Note that a new start of this kernel was admitted."""
        self.launch_id, self.owner, self.reason, self.process = start.launch_id, start.owner, "", None
        self.is_stopped = False
        self.kernel_name = start.connection.kernel_name
        self.notebook = os.path.basename(start.connection.jupyter_session)

    def claim(self, lease: Lease) -> None:
        """Note the lease that is claimed next, so that an undo finds it."""
        self._go(Phase.CLAIMING)
        self.book.want(lease)
        self.lease_id, self.decision = lease.id, None
        self.prospect = self.warning = ""

    def wait_for_manager(self) -> None:
        """Note that the manager has accepted the claim and will grant the lease later."""
        self._go(Phase.PENDING)

    def refuse(self) -> None:
        """Go back to the queue: the manager refused the claim, or took the lease back before launch."""
        self._go(Phase.QUEUED)
        self.lease_id = ""

    def launch(self) -> None:
        self._go(Phase.LAUNCHING)
        self.process = None
        self.lease_changed.clear()

    def run(self, process: KernelProcess) -> None:
        self._go(Phase.RUNNING)
        self.process, self.launch_id = process, process.launch_id

    def exit(self, process: KernelProcess) -> None:
        """Note that the process has ended. The lease is kept for a restart."""
        self._go(Phase.EXITED)
        self.process = process

    def fail_restart(self, reason: str) -> None:
        """Note that a restart has failed. The lease is kept for another restart."""
        self._go(Phase.EXITED)
        self.reason = reason

    def finish(self) -> None:
        self._go(Phase.ENDING)

    @property
    def is_waiting(self) -> bool:
        """True if the kernel's start waits for a lease."""
        return self.start is not None and (self.lease is None or self.lease.state == "pending")

    def _go(self, phase: Phase) -> None:
        if phase is not self.phase and phase not in _NEXT[self.phase]:
            raise RuntimeError(f"kernel {self.kernel_id} cannot go from {self.phase.name} to {phase.name}")
        self.phase = phase

    def view(self, queue: Queue, *, with_connection: bool = False) -> Kernel:
        """Return the kernel as users see it."""
        process, lease = self.process, self.lease
        connection = process.connection if process else None
        position, waits_for = queue.place(self.ticket) if self.ticket else (None, "")
        if self.state == "queued" and lease is not None:  # its wait in the queue is over
            position, waits_for = 1, lease.reason
        if process is not None and not with_connection:
            process = replace(process, connection=None)
        return Kernel(
            id=self.kernel_id,
            launch_id=self.launch_id,
            state=self.state,
            owner=self.owner,
            request=self.request,
            kernel_name=self.kernel_name or (connection.kernel_name if connection else ""),
            notebook=self.notebook or (os.path.basename(connection.jupyter_session) if connection else ""),
            node_id=lease.node_id if lease else "",
            lease_id=lease.id if lease else "",
            device_ids=(process.device_ids if process else ()) or (lease.device_ids if lease else ()),
            process=process,
            created_at=self.created_at,
            timing_ms={**self.timing_ms, **(process.timing_ms if process else {})},
            decision=self.decision,
            position=position,
            waits_for=waits_for,
            reason=self.reason or (process.reason if process else ""),
            prospect=(self.prospect or self.idle_prospect) if self.runs else "",
            is_stopped=self.is_stopped,
        )
