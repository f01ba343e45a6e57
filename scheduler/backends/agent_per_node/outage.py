"""The recovery from an outage.

An agent and its kernels outlive the manager, and the manager's daemon on their node.

When the same cluster is back, the manager does not know the kernels' leases, so roost claims them again. If
another kernel has taken the slice meanwhile, the lease is lost.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic

from roost.launchers.daemon.tasks import ask_all
from roost.scheduler.backends.base import Lease
from roost.scheduler.backends.lease_book import LeaseBook
from roost.scheduler.errors import LeaseConflict, RoostError
from roost.scheduler.messages import Finding, format_time

from .agents import AgentPool
from .manager import ClusterManager, has_claim
from .membership import N
from .node_table import NodeTable

_MISSES = 3
"""How many readings in a row must lack the claim of a lease before roost asks the manager for that claim.

If the manager has no such claim, the lease is lost.
"""

_LEAVING_S = 5.0
"""How long a node may be missing before its kernels say so: its agent finds out meanwhile whether it has left."""


@dataclass
class OutageRecovery(Generic[N]):
    """Restores leases after an outage."""

    manager: ClusterManager[N]
    book: LeaseBook
    table: NodeTable[N]
    pool: AgentPool
    grace_s: float
    """How long a node is expected back."""
    lose: Callable[[str, str], None]
    """Reports that a lease is lost, and why."""
    end: Callable[[Lease], None]
    """Has the agent end the lease's kernel."""
    _expected: dict[str, float] = field(default_factory=dict)  # by node, until when
    _restoring: Counter[str] = field(default_factory=Counter)
    _misses: dict[str, int] = field(default_factory=dict)

    @property
    def expected(self) -> frozenset[str]:
        """The ids of the nodes that may come back or are being restored.

        The manager may not know all their leases.
        """
        return frozenset(self._expected) | frozenset(+self._restoring)

    def describe_ends(self) -> str:
        """Return a clause about what becomes of the kernels here while the manager is away; empty if there are none.

        Agents that have lost their daemon give the time.
        """
        nodes = self.book.nodes()
        ends = sorted(self.pool.ends[node_id] for node_id in nodes if node_id in self.pool.ends)
        if not ends:
            return "its kernels live on" if nodes else ""
        is_same = len(ends) == len(nodes) and ends[-1] - ends[0] < 1
        kernels = "its kernels" if is_same else "some of its kernels"
        at = format_time(ends[0])
        if time.time() > ends[0]:
            return f"{kernels} were to end at {at}"
        return f"{kernels} end at {at} if it is not back by then"

    def describe_end(self, node_id: str) -> str:
        """Return what becomes of the kernels on a node, as the prospect of each; empty if nothing threatens them."""
        membership, name = self.manager.membership, self.manager.name
        is_away, ends_at = bool(membership.away), self.pool.ends.get(node_id)
        expected_at = self._expected.get(node_id, math.inf) - self.grace_s
        is_missing = node_id not in membership.nodes and time.monotonic() > expected_at + _LEAVING_S
        if not (is_away or is_missing or ends_at):
            return ""
        who = (
            f"the {name} cluster is away" if is_away else f"node {node_id} is not back in the {name} cluster"
        )
        if ends_at is not None:
            return f"{who}; this kernel ends at {format_time(ends_at)} if it is not back by then"
        return f"{who}; this kernel lives on"

    def report_missing(self) -> list[Finding]:
        """Return a finding for each node that is not back after an outage, though kernels live there."""
        if self.manager.membership.away:
            return []
        found: list[Finding] = []
        for node_id, ends_at in sorted(self.pool.ends.items()):
            if self.book.on(node_id) and node_id not in self.manager.membership.nodes:
                where = f"node {node_id} is not back in the {self.manager.name} cluster"
                what = f"{where}: what runs there ends at {format_time(ends_at)}"
                found.append({"level": "warning", "what": what, "do": "bring the node back before that time"})
        return found

    @contextmanager
    def restoring(self, node_ids: Iterable[str]) -> Iterator[None]:
        """Treat these nodes as `expected` in the block, because the manager may lack some of their leases."""
        nodes = Counter(node_ids)
        self._restoring += nodes
        try:
            yield
        finally:
            self._restoring -= nodes

    def expect(self, node_id: str) -> None:
        self._expected.setdefault(node_id, time.monotonic() + self.grace_s)

    async def restore_returned(self) -> bool:
        """Claim the leases again on expected nodes that are back in the cluster.

        Return True if at least one node is no longer expected: it is back, or its grace is over.
        """
        now, before = time.monotonic(), self._expected.keys()
        self._expected = {name: until for name, until in self._expected.items() if now < until}
        returned = self._expected.keys() & self.manager.membership.nodes.keys()
        if returned:
            await self.restore(returned)
        return bool(before - self._expected.keys())

    async def restore(self, node_ids: Iterable[str]) -> None:
        """Claim again the leases of live kernels on these nodes. A node that is not in the cluster yet is expected."""
        node_ids = list(node_ids)
        with self.restoring(node_ids):
            try:
                await self._restore(node_ids)
            except (
                RoostError
            ):  # the manager has left again: until it is back, none of these leases is missing
                for node_id in node_ids:
                    self.expect(node_id)
                raise

    async def _restore(self, node_ids: Sequence[str]) -> None:
        claimed = {lease.id for lease in await self.manager.claims() if lease.state == "held"}
        readings = await ask_all(self.pool.held_on, node_ids)
        for node_id, held in zip(node_ids, readings, strict=True):
            node = self.manager.membership.nodes.get(node_id)
            if node is not None and not self.manager.can_take_on(node):
                node = None
            if held is None or (held.leases and node is None):
                self.expect(node_id)
            else:
                self._expected.pop(node_id, None)
            again: list[Lease] = []
            # Managers grant the first free device. In this order, each lease gets its own device again.
            for lease in sorted(held.leases if held else (), key=lambda lease: lease.device_ids):
                is_wanted = self.book.show(lease)
                if is_wanted and node is not None and lease.id not in claimed:
                    await self._claim_again(lease, node)
                    again.append(lease)
            if again:
                await self._give_back_released(node_id, again)

    async def find_lost(self) -> None:
        """Report the leases whose node or claim is gone, although roost did not give them back."""
        misses: dict[str, int] = {}
        for node_id in self.book.nodes():
            node = self.manager.membership.nodes.get(node_id)
            leases = [lease for lease in self.book.on(node_id) if not self.book.is_released(lease.id)]
            unclaimed = leases if node is None else self.manager.unclaimed(leases, node)
            if not unclaimed or node_id in self.expected:
                continue
            for lease in unclaimed:
                misses[lease.id] = self._misses.get(lease.id, 0) + 1
                if misses[lease.id] >= _MISSES:
                    del misses[lease.id]
                    await self._look_up(lease, node)
        self._misses = misses

    async def _look_up(self, lease: Lease, node: N | None) -> None:
        if node is not None:
            if not await has_claim(self.manager, lease):
                self.lose(lease.id, f"its {self.manager.claim_name} was removed")
        elif lease.id in await self._list_held(lease.node_id):
            self.expect(lease.node_id)  # its agent lives, and waits for the cluster to come back
        else:
            await self.manager.release(lease)  # or it waits for a node, and an autoscaler starts one
            self.lose(lease.id, f"its node {lease.node_id} has left the {self.manager.name} cluster")

    async def _list_held(self, node_id: str) -> set[str]:
        """Return the ids of the leases that the node's agent has noted."""
        held = await self.pool.held_on(node_id)
        return {lease.id for lease in held.leases} if held else set()

    async def _give_back_released(self, node_id: str, leases: Iterable[Lease]) -> None:
        """Give back those claims whose leases another service has released while they were claimed again."""
        if (held := await self.pool.held_on(node_id)) is None:
            return
        noted = {lease.id for lease in held.leases}
        for lease in [lease for lease in leases if lease.id not in noted]:
            await self.manager.release(lease)
            self.book.miss(lease.id)

    async def _claim_again(self, lease: Lease, node: N) -> None:
        try:
            await self.manager.claim(lease, node, self.table.has_room, again=True)
        except LeaseConflict as problem:
            reason = f"the {self.manager.name} cluster came back without room for it: {problem}"
            self.lose(lease.id, reason)
            self.end(lease)  # no kernel record may exist yet, so that nobody else would end it
