"""The rules of leases: when a lease expires, is released or is lost, and when an agent without leases leaves.

    reserved ───────> a kernel starts and runs ───────> no kernel runs
       │                    ^                              │   │
       │                    └──── Jupyter restarts it ─────┘   │ after `linger_s`
       └── after `UNUSED_LEASE_S` ──────────> released <───────┴── the service, or a lost node, at any moment

The agent leaves a while after its last lease is released. In a pod it leaves with its only lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from roost.launchers.daemon.tasks import Timers, cancel_all, join_shared, spawn, start_shared
from roost.launchers.protocol.messages import Lease, Reserve
from roost.launchers.protocol.rpc import RemoteError

from .ledger import LeaseLedger

log = logging.getLogger(__name__)

UNUSED_LEASE_S = 30.0
"""How long a lease may be without a kernel. The scheduler that asked for it may have died."""
STOP_GRACE_S = 2.0
_OUTSIDE_EXIT_S = 10.0  # after its node has left the cluster
_OUTDATED_EXIT_S = 1.0  # after its devices have changed; the next agent takes them up
_IDLE = ""  # the key of the timer for idleness; other timers have lease ids as keys


class Kernels(Protocol):
    """The kernels in the leases."""

    def runs_in(self, lease: Lease) -> bool:
        """True if a kernel starts or runs in the lease."""

    async def release(self, lease: Lease, grace_s: float) -> None:
        """End the kernel in the lease, if there is one, and forget it."""


class LeaseRules:
    """Ends the leases of a ledger, and calls `leave` after a time without any.

    `publish` gets the kind and the fields of an event. `clear` is called with a lease id once no kernel is left in the
    lease, and removes its limits. `on_change` is called after each change of the ledger.
    """

    def __init__(
        self,
        ledger: LeaseLedger,
        kernels: Kernels,
        *,
        clear: Callable[[str], Awaitable[None]],
        publish: Callable[..., None],
        on_change: Callable[[], object],
        leave: Callable[[], object],
        idle_exit_s: float,
        exit_after_release_s: float,
    ) -> None:
        self._ledger = ledger
        self._kernels = kernels
        self._clear = clear
        self._publish = publish
        self._on_change = on_change
        self._leave = leave
        self._usual_exit_s = self._exit_s = idle_exit_s
        self._exit_after_release_s = exit_after_release_s
        self._releases: dict[str, asyncio.Task[None]] = {}
        self._timers = Timers()
        self._tasks: set[asyncio.Task[Any]] = set()

    def adopt(self) -> None:
        """Watch the leases of an earlier agent, once its kernels are adopted."""
        for entry in self._ledger.entries():
            self.let_expire(entry.lease.id)
        self._watch_idleness()

    async def close(self) -> None:
        self._timers.close()
        await cancel_all(self._tasks)

    def begin(self, request: Reserve) -> None:
        """Watch a lease that the ledger has just granted."""
        lease = request.lease
        log.info("lease=%s kernel=%s reserved", lease.id, lease.kernel_id)
        self._expire_later(lease.id, max(UNUSED_LEASE_S, request.linger_s))
        self._watch_idleness()
        self._on_change()
        self._publish("reserved", lease_id=lease.id)

    def occupy(self, lease_id: str, kernel_id: str) -> Lease:
        """Return the lease for a kernel's launch. The caller then calls `let_expire`. Raises `RemoteError`."""
        entry = self._ledger.get(lease_id)
        if entry is None or entry.lease.kernel_id != kernel_id:
            raise RemoteError("no_lease", f"there is no lease {lease_id} for this kernel")
        # A release ends the kernel first and takes the lease out last. A launch between the two would be left behind.
        if lease_id in self._releases:
            raise RemoteError("no_lease", f"lease {lease_id} is being released")
        self._timers.cancel(lease_id)
        return entry.lease

    def let_expire(self, lease_id: str) -> None:
        """Release the lease after its `linger_s`, unless a kernel runs in it by then. A restarter may try again."""
        entry = self._ledger.get(lease_id)
        if entry is not None and lease_id not in self._releases and not self._kernels.runs_in(entry.lease):
            self._expire_later(lease_id, entry.linger_s)

    async def release(self, lease_id: str, grace_s: float = STOP_GRACE_S) -> None:
        """Give a lease back and end its kernel. All callers share one release, which goes on if they give up."""
        task = self._releases.get(lease_id)
        if task is None:
            task = self._releases[lease_id] = start_shared(self._end(lease_id, grace_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self._releases.pop(lease_id, None))
        await join_shared(task)

    async def release_all(self, grace_s: float = STOP_GRACE_S) -> None:
        await asyncio.gather(*(self.release(entry.lease.id, grace_s) for entry in self._ledger.entries()))

    def report_loss(self, reason: str) -> None:
        """Report to all subscribers that every lease is lost."""
        for entry in self._ledger.entries():
            self._publish("lost", lease_id=entry.lease.id, reason=reason)

    async def lose_all(self, reason: str) -> None:
        """Release all leases, because the node has left its cluster."""
        self.report_loss(reason)  # first, so that no scheduler starts a kernel in a lost lease
        await self.release_all()
        self._exit_s = min(self._exit_s, _OUTSIDE_EXIT_S)
        self._watch_idleness()

    def stay(self) -> None:
        """Wait for leases as long as usual again, because the node belongs to its cluster."""
        self._exit_s = self._usual_exit_s
        self._watch_idleness()

    def leave_when_empty(self) -> None:
        """Leave soon after the last lease, because the next agent of this machine can grant more. May be repeated."""
        if self._exit_s > _OUTDATED_EXIT_S:
            self._exit_s = _OUTDATED_EXIT_S
            self._watch_idleness()

    async def _end(self, lease_id: str, grace_s: float) -> None:
        entry = self._ledger.get(lease_id)
        if entry is None:
            return
        # The kernel ends before the ledger promises its slice to somebody else, because the lease covers the kernel.
        await self._kernels.release(entry.lease, grace_s)
        await self._clear(lease_id)
        # From here on nothing waits: no other task sees a lease that is released in the ledger and not reported.
        self._timers.cancel(lease_id)
        self._ledger.release(lease_id)
        self._on_change()
        log.info("lease=%s released", lease_id)
        self._publish("released", lease_id=lease_id)
        self._exit_s = min(self._exit_s, self._exit_after_release_s)
        self._watch_idleness()

    def _expire_later(self, lease_id: str, delay_s: float) -> None:
        self._timers.later(delay_s, lambda: spawn(self._expire(lease_id), self._tasks, log), key=lease_id)

    async def _expire(self, lease_id: str) -> None:
        # Looked at again, because a launch may have begun after the timer fired and before this task's first step.
        entry = self._ledger.get(lease_id)
        if entry is not None and not self._kernels.runs_in(entry.lease):
            await self.release(lease_id)

    def _watch_idleness(self) -> None:
        """Leave after a time without leases. Kernels cannot run without leases."""
        self._timers.cancel(_IDLE)
        if self._ledger.is_empty:
            self._timers.later(self._exit_s, self._leave, key=_IDLE)
