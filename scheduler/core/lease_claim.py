"""How a start gets its lease: queue → snapshot → place → claim, repeated until a lease is held or time is up."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from roost.launchers.protocol.messages import Execution, JournalLimits, Launch
from roost.placement import Decision, Node, Request, Snapshot
from roost.placement.rules.refusals import AMOUNTS
from roost.placement.shipped_policies import SHIPPED
from roost.scheduler.backends.base import Backend, Lease
from roost.scheduler.errors import BackendUnavailable, LaunchError, LeaseConflict, NoNodeEver, NoNodeNow
from roost.scheduler.messages import StartKernel, end_sentence
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.explain import describe_left

from .backend_access import BackendAccess
from .kernel_record import KernelRecord
from .kernel_table import KernelTable
from .queue import Ticket, find_hold, held_for_elders

_AWAY_S = 1.0
"""How long a queued start waits between two checks of an `away` manager."""
_LEFT_S = 5.0
"""How long a queued start that no node could ever hold waits between two checks if a node that has left may return."""
_SKIP_S = (1.0, 30.0)
"""First and longest time for which a start avoids a node after the manager refused a lease there.

The manager may show resources as free before it can grant them.
"""
_EXPLAIN_S = 1.0
"""How long a start that is out of time waits for the state of the cluster, to explain the last refusal."""
_KEPT_REFUSALS = 20
"""At most this many refusals are kept with each placed kernel. All are counted."""
_REFUSED = "refused this request a moment ago"
_KEPT = "reserved for a kernel that has waited longer"


def build_launch(start: StartKernel, lease_id: str, deadline_s: float, journal: JournalLimits) -> Launch:
    """Return the launch of a start in a lease."""
    execution = {each.name: getattr(start, each.name) for each in fields(Execution)}
    return Launch(**execution, lease_id=lease_id, deadline_s=deadline_s, journal=journal)


@dataclass(frozen=True, slots=True)
class LeaseClaimer:
    """Takes leases for starts. Deadlines are monotonic times."""

    access: BackendAccess
    table: KernelTable
    policies: PolicyCatalog
    reserve_after_s: float
    journal: JournalLimits

    async def take(
        self, record: KernelRecord, start: StartKernel, deadline: float, *, has_tried: bool
    ) -> float:
        """Take a lease and wait until it is held. Raises `PlacementError`, `LaunchError` and `BackendUnavailable`.

        Return the deadline of the launch, which is later if the lease has waited for a new node. `has_tried`: the
        manager has answered this start before, so that it waits while the manager is away.
        """
        skipped = _Skipped()
        is_of_earlier = record.lease is not None  # pending, of an earlier scheduler
        while True:
            if record.lease is None:
                await self._queue_and_claim(record, start, deadline, skipped, has_tried=has_tried)
            has_tried = True
            assert record.lease is not None
            try:
                if is_of_earlier:  # the answer is the same
                    is_of_earlier = False
                    lease = replace(record.lease, request=record.request, owner=record.owner)
                    await self.access.backend.claim(lease)
                if record.lease.state != "held":
                    deadline = await self._wait_until_held(record, start, deadline)
            except LeaseConflict as problem:
                await self.give_back(record, deadline)
                self._refuse(record, str(problem))
            else:
                record.launch()
                self.table.publish("leased", record)
                return deadline

    async def give_back(self, record: KernelRecord, deadline: float) -> None:
        """Release the record's lease, because the next claim has the same lease id. Wait while the manager is away."""
        assert record.lease is not None
        while True:
            try:
                await self.access.backend.release(record.lease)
                return
            except BackendUnavailable:
                if time.monotonic() + _AWAY_S > deadline:
                    raise
            await asyncio.sleep(_AWAY_S)
            record.check_wanted()

    async def _queue_and_claim(
        self,
        record: KernelRecord,
        start: StartKernel,
        deadline: float,
        skipped: _Skipped,
        *,
        has_tried: bool,
    ) -> None:
        """Wait until a node has room, and claim a lease there.

        On return the record has a lease, held or pending. `has_tried` is as in `take`.
        """
        interpreter = start.argv[0] if start.may_fork and start.argv else ""
        request = replace(record.request, environment=interpreter)
        queue, began = self.table.queue, time.monotonic()
        record.ticket = ticket = queue.join(record.kernel_id, _line(record), start.waited_s)
        is_timed = False
        try:
            while True:
                decision = snapshot = None  # thousands may wait here, and these are large
                try:
                    await queue.turn(ticket, deadline)
                except asyncio.TimeoutError:
                    position, waits_for = queue.place(ticket)
                    waited = f"{start.wait_s:.3g} s at position {position}"
                    document = await self._explain(ticket, request, skipped) if has_tried else None
                    raise _out_of_time(waited, waits_for, position, document) from None
                record.check_wanted()
                try:
                    snapshot = await self.access.snapshot()
                except BackendUnavailable as problem:
                    if not has_tried:
                        raise
                    # The manager was there before: a start that waits for room waits for the manager as well.
                    queue.explain(ticket, str(problem))
                    queue.retry(ticket, _AWAY_S)
                    continue
                looked = time.monotonic()
                if skipped.everywhere is not None and skipped.everywhere.holds(snapshot, looked):
                    continue
                decision = await self._decide(ticket, request, snapshot, skipped)
                has_waited, has_tried = has_tried, True
                if decision.is_never:
                    left = describe_left(self.access.backend.left_nodes())
                    if not (has_waited and left):
                        raise no_node(decision, self.access.backend)
                    # After an outage, nodes come back one by one.
                    ticket.hold = None
                    queue.explain(ticket, f"{decision.reason}; {left}")
                    queue.retry(ticket, _LEFT_S)
                    continue
                may_claim_at = self._find_claim_time(decision, began)
                refused = skipped.new_node
                if refused is not None and refused.holds(snapshot, looked):
                    may_claim_at = max(may_claim_at, refused.until)
                else:
                    refused = None
                if decision.placement is None and looked < may_claim_at:
                    ticket.hold = find_hold(decision, snapshot)
                    queue.explain(ticket, refused.reason if refused else decision.reason)
                    if not is_timed and may_claim_at < deadline:
                        is_timed = True
                        queue.retry(ticket, may_claim_at - looked)
                    continue
                placed = time.monotonic()
                record.timing_ms["queued"] = (looked - began) * 1e3
                record.timing_ms["placed"] = (placed - looked) * 1e3
                lease_id = self.table.lease_id(start.kernel_id, start.launch_id)
                # `deadline` limits the launch, too, unless it is that of the queue alone.
                left_s = deadline - placed if start.queue_timeout_s is None else math.inf
                deadline_s = min(left_s, start.launch_timeout_s)
                launch = build_launch(start, lease_id, deadline_s, self.journal)
                conflict = await self._claim(record, decision, launch)
                if conflict is None:
                    record.timing_ms["leased"] = (time.monotonic() - placed) * 1e3
                    return
                placement = decision.placement
                node = snapshot.node(placement.node_id) if placement else None
                if conflict.is_everywhere:
                    skip = skipped.everywhere = _Refusal.after(skipped.everywhere, node, str(conflict))
                    queue.explain(ticket, str(conflict))
                elif node is None:
                    skip = skipped.new_node = _Refusal.after(skipped.new_node, None, str(conflict))
                    queue.explain(ticket, str(conflict))
                else:
                    earlier = skipped.nodes.get(node.id)
                    skip = skipped.nodes[node.id] = _Refusal.after(earlier, node, str(conflict))
                    ticket.event.set()
                queue.retry(ticket, skip.for_s)
        finally:
            queue.leave(ticket)
            record.ticket = None

    async def _decide(
        self, ticket: Ticket, request: Request, snapshot: Snapshot, skipped: _Skipped
    ) -> Decision:
        now = time.monotonic()
        reasons = {
            name: f"{_REFUSED}: {refusal.reason}"
            for name, refusal in skipped.nodes.items()
            if refusal.holds(snapshot, now)
        }
        held = held_for_elders(
            ticket, request, self.table.queue.heads(), now=now, after_s=self.reserve_after_s
        )
        reasons |= dict.fromkeys(held, _KEPT)
        return await self.policies.decide(request.policy, request, snapshot, avoid=reasons)

    def _find_claim_time(self, decision: Decision, began: float) -> float:
        """Return from when on a claim without a node may wait with the manager, which may start a node for it.

        Raises `NoNodeEver` if no node that is there could hold the request, and the manager cannot be asked for one.
        """
        growth, new_node = self.access.backend.growth, decision.new_node
        if decision.placement is not None or not growth.adds_nodes:
            return math.inf
        if why_not := growth.why_not(decision.request):
            if decision.fits_no_node:
                raise NoNodeEver(f"{decision.reason}; {why_not}.", decision=decision.to_dict())
            return math.inf
        if new_node is not None and not new_node.has_room:
            return math.inf
        if decision.fits_no_node or not growth.after_s:
            return began
        helps = new_node is not None or decision.may_grow
        return began + growth.after_s if helps and not _has_closed_room(decision) else math.inf

    async def _explain(self, ticket: Ticket, request: Request, skipped: _Skipped) -> dict[str, Any] | None:
        """Return the decision for the request now, or None if the manager does not answer."""
        with suppress(BackendUnavailable, asyncio.TimeoutError):
            snapshot = await asyncio.wait_for(self.access.snapshot(), _EXPLAIN_S)
            return (await self._decide(ticket, request, snapshot, skipped)).to_dict()
        return None

    async def _claim(self, record: KernelRecord, decision: Decision, launch: Launch) -> LeaseConflict | None:
        """Claim a lease for the decision's placement. Without a placement, the claim waits in the manager's queue.

        Return the manager's refusal, or None if it has accepted the claim.
        """
        placement = decision.placement
        wanted = Lease(
            id=launch.lease_id,
            kernel_id=record.kernel_id,
            node_id=placement.node_id if placement else "",
            device_ids=placement.device_ids if placement else (),
            request=record.request,
            owner=record.owner,
            state="pending",
            asked_at=record.created_at,
        )
        record.claim(wanted)
        claiming = self.access.backend.claim(wanted, launch)
        try:
            # The claim is sent first: its answer takes as long as the decision's description.
            await asyncio.gather(claiming, self._describe(record, decision))
        except LeaseConflict as problem:
            self.table.book.release(wanted.id)
            self._refuse(record, str(problem))
            return problem
        return None

    async def _describe(self, record: KernelRecord, decision: Decision) -> None:
        record.decision = decision.to_dict(refusals=_KEPT_REFUSALS)
        self.table.publish("placed", record, decision.reason)

    async def _wait_until_held(self, record: KernelRecord, start: StartKernel, deadline: float) -> float:
        """Wait for a pending lease; return the deadline of what follows. A lease without a node may wait longer.

        Raises `LeaseConflict` if the lease is lost and another claim may succeed.
        """
        assert record.lease is not None
        record.wait_for_manager()
        self.table.publish("queued", record, record.lease.reason)
        began = time.monotonic()
        extended_s = 0.0 if record.lease.node_id else self.access.backend.growth.start_timeout_s
        give_up_at = max(deadline, began + extended_s)
        # The lease is read from the book: news about it may have come before the claim's answer.
        while record.lease.state == "pending":
            record.lease_changed.clear()
            try:
                await asyncio.wait_for(record.lease_changed.wait(), max(0.0, give_up_at - time.monotonic()))
            except asyncio.TimeoutError:
                waited = f"{max(start.wait_s, extended_s):.3g} s"
                raise _out_of_time(waited, record.lease.reason, 1, record.decision) from None
            record.check_wanted()
        if record.lease.state == "lost":
            raise (LaunchError if record.lease.is_final else LeaseConflict)(record.lease.reason)
        now = time.monotonic()
        record.timing_ms["granted"] = (now - began) * 1e3
        return max(deadline, now + start.launch_timeout_s) if extended_s else deadline

    def _refuse(self, record: KernelRecord, reason: str) -> None:
        node_id = record.lease.node_id if record.lease else ""
        record.refuse()
        self.table.publish("conflict", record, f"{node_id}: {reason}" if node_id else reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """A refused claim on `node`, or on any node if `node` is None. It counts for a limited time."""

    node: Node | None
    reason: str
    for_s: float
    until: float

    @classmethod
    def after(cls, earlier: _Refusal | None, node: Node | None, reason: str) -> _Refusal:
        """Return a refusal that counts twice as long as `earlier`, with jitter."""
        first_s, longest_s = _SKIP_S
        for_s = first_s if earlier is None else min(2 * earlier.for_s, longest_s)
        for_s *= random.uniform(0.8, 1.2)
        return cls(node=node, reason=reason, for_s=for_s, until=time.monotonic() + for_s)

    def holds(self, snapshot: Snapshot, now: float) -> bool:
        """True until the refusal's time is over, or the node's promised resources have changed."""
        if now >= self.until or self.node is None:
            return now < self.until
        return self.node.id in snapshot and _promised(snapshot.node(self.node.id)) == _promised(self.node)


@dataclass(slots=True)
class _Skipped:
    """The refusals that one start has received: `nodes` by node id, `everywhere` for all nodes together.

    `new_node` refuses to ask for one, and says nothing about the nodes that are there.
    """

    nodes: dict[str, _Refusal] = field(default_factory=dict)
    new_node: _Refusal | None = None
    everywhere: _Refusal | None = None


def _has_closed_room(decision: Decision) -> bool:
    """True if a node has the amounts, but is refused for another reason, as while it drains.

    The manager does not know this reason, and would grant a claim without a node there.
    """
    short = {each.node_id for each in decision.refusals if each.filter in AMOUNTS or each.when == "never"}
    return any(each.node_id not in short for each in decision.refusals)


def _out_of_time(waited: str, waits_for: str, position: int, decision: Mapping[str, Any] | None) -> NoNodeNow:
    reason = f"waited {waited}: {waits_for or 'the cluster did not answer'}"
    return NoNodeNow(end_sentence(reason), position=position, decision=dict(decision) if decision else None)


def no_node(decision: Decision, backend: Backend) -> NoNodeNow | NoNodeEver:
    """Return the error that a decision found no node. A node of the backend that has left lately may come back."""
    if not decision.is_never:
        return NoNodeNow(f"{decision.reason}.", decision=decision.to_dict())
    left = describe_left(backend.left_nodes())
    reason = f"{decision.reason}; {left}. Start it again when it is back" if left else decision.advised_reason
    return NoNodeEver(f"{reason}.", decision=decision.to_dict())


def _line(record: KernelRecord) -> Hashable:
    """Return the key of the record's line in the queue. Equal requests share a line.

    A request without amounts gets a line of its own: it always fits. A policy of somebody else may look at the owner,
    and count the owner's kernels. Its lines are therefore those of one owner, and it never decides on two equal
    requests at the same moment.
    """
    request = record.request
    is_ours = request.policy in SHIPPED
    if is_ours and request.is_best_effort and not request.resources:
        return record.kernel_id
    return replace(request, environment="", owner="" if is_ours else request.owner, near={})


def _promised(node: Node) -> tuple[Any, ...]:
    devices = tuple(device.promised for device in node.devices)
    sums = node.cpus_promised, node.memory_promised_bytes, node.gpus_promised
    return *sums, node.resources_promised, devices
