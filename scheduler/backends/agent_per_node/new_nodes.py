"""Leases that wait for a node that does not exist yet."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from roost.launchers.daemon.tasks import spawn
from roost.scheduler.backends.base import Growth, Launch, Lease
from roost.scheduler.backends.lease_book import LeaseBook
from roost.scheduler.errors import LeaseConflict, RoostError

log = logging.getLogger(__name__)


class NewNodes(Growth, ABC):
    """The growth of a cluster whose manager is asked for nodes.

    Its claims without a node are held where the manager makes room for them, on a new node or on one that became free.
    """

    @property
    @abstractmethod
    def is_still_reading(self) -> bool:
        """True until it is known once which kinds of nodes may come, or that this cannot be known."""

    @abstractmethod
    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` when what the cluster can start has changed, apart from the numbers of nodes."""

    @abstractmethod
    async def ask(self, lease: Lease) -> None:
        """Claim the slice without a node, or find it claimed. Raises `BackendUnavailable`."""

    @abstractmethod
    async def follow(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Return what is known now of claims without a node, and keep them alive. Called after each reading.

        Each is pending, with its node if the manager has granted it, or else with the reason why it waits. A claim that
        is gone is lost.
        """

    @abstractmethod
    def hold(self, lease: Lease) -> None:
        """Keep the claim alive while the agent of its node notes the lease. Ignores claims that had a node at once."""

    @abstractmethod
    async def settle(self, lease: Lease) -> None:
        """Let the claim stay without a service, because the agent has noted the lease. Cheap if it is repeated."""


class WaitingLeases:
    """The leases of this service that wait for a new node.

    `settle` makes a lease held on the node that the manager has granted: the node's agent notes it.
    """

    def __init__(
        self,
        new_nodes: NewNodes,
        book: LeaseBook,
        settle: Callable[[Lease, Launch | None], Awaitable[object]],
    ) -> None:
        self._new_nodes = new_nodes
        self._book = book
        self._settle = settle
        self._claims: dict[str, tuple[Lease, Launch | None]] = {}
        """By lease id: the lease as it was claimed, and the launch that follows, as far as it is known.

        A reading of all leases shows less of a lease that no agent has noted.
        """
        self._settling: dict[str, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        return self._tasks

    async def claim(self, lease: Lease, launch: Launch | None) -> Lease:
        """Ask for a node, and return the pending lease. May be repeated."""
        known = self._book.get(lease.id)
        if lease.id in self._claims or lease.id in self._settling:
            return known or lease
        await self._new_nodes.ask(lease)
        self._claims[lease.id] = lease, launch
        (pending,) = await self._new_nodes.follow([lease])
        if pending.state == "lost" or pending.node_id:
            pending = replace(lease, state="pending")
        self._book.show(pending)
        return pending

    async def follow(self) -> None:
        """Show what the manager's last reading says about the leases that wait."""
        if not self._claims:
            return
        for lease in await self._new_nodes.follow([lease for lease, _ in self._claims.values()]):
            if lease.id not in self._claims:  # it was released meanwhile
                continue
            if lease.state == "lost":
                del self._claims[lease.id]
            elif lease.node_id:
                lease = replace(lease, reason=f"roost's agent starts on {lease.node_id}")
                _, launch = self._claims.pop(lease.id)
                self._settling[lease.id] = spawn(self._hold(lease, launch), self._tasks, log)
            self._book.show(lease)

    async def stop(self, lease_id: str) -> None:
        """Follow this lease no longer, because it is being released."""
        self._claims.pop(lease_id, None)
        if (settling := self._settling.pop(lease_id, None)) is not None:
            settling.cancel()
            await asyncio.wait([settling])

    async def _hold(self, lease: Lease, launch: Launch | None) -> None:
        try:
            await self._settle(lease, launch)
        except LeaseConflict as problem:
            self._book.lose(lease.id, str(problem))
        except RoostError as problem:
            # Another new node would most likely have the same problem, and would cost money.
            self._book.show(replace(lease, state="lost", reason=str(problem), is_final=True))
        finally:
            self._settling.pop(lease.id, None)
