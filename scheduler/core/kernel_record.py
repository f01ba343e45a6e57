"""One kernel as the scheduler holds it: nothing here that could not be read back from leases and agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from roost.launchers.protocol.messages import KernelProcess, Owner
from roost.placement.model import Request
from roost.scheduler.service.messages import Kernel, KernelState

from .queue import Queue, Ticket

if TYPE_CHECKING:
    from roost.scheduler.backends.base import Lease


@dataclass(slots=True, kw_only=True, eq=False)
class Record:
    """A kernel, or the start of one. `start` is the task that brings it up, while it does; `end` the one that ends it.

    `is_begun`: that task has made its first step, without which it could not find out that it was cancelled.
    `is_taken_back`: it is on its way back, and must not be cancelled (again).
    """

    kernel_id: str
    launch_id: str
    owner: Owner
    request: Request
    created_at: float
    state: KernelState = "queued"
    lease: Lease | None = None
    process: KernelProcess | None = None
    late_exit: KernelProcess | None = None
    ticket: Ticket | None = None
    start: asyncio.Task[Kernel] | None = None
    end: asyncio.Task[Kernel] | None = None
    is_begun: bool = False
    is_taken_back: bool = False
    decision: Mapping[str, Any] | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def view(self, queue: Queue, *, with_connection: bool = False) -> Kernel:
        """The kernel as others see it."""
        process, lease = self.process, self.lease
        position, waits_for = queue.place(self.ticket) if self.ticket else (None, "")
        kernel = Kernel(
            id=self.kernel_id,
            launch_id=self.launch_id,
            state=self.state,
            owner=self.owner,
            request=self.request,
            node_id=lease.node_id if lease else "",
            lease_id=lease.id if lease else "",
            device_ids=lease.device_ids if lease else (),
            process=process,
            created_at=self.created_at,
            timing_ms={**self.timing_ms, **(process.timing_ms if process else {})},
            decision=self.decision,
            position=position,
            waits_for=waits_for,
            reason=self.reason or (process.reason if process else ""),
        )
        return kernel if with_connection else kernel.without_keys()
