"""The nodes of a cluster by the last reading of its manager, and whether the manager is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from roost.launchers.daemon.tasks import join_shared, start_shared
from roost.scheduler.errors import BackendUnavailable

if TYPE_CHECKING:
    from .manager import ManagedNode

log = logging.getLogger(__name__)

N = TypeVar("N", bound="ManagedNode")


class Membership(Generic[N]):
    """A cluster's nodes, as last read. `away` says why the manager does not answer; empty while it answers.

    `join` joins the cluster, and `fetch` reads its nodes. If one of them raises `BackendUnavailable`, the manager is
    away until it is joined again. If `fetch` returns the same object as before, no node has changed.
    """

    def __init__(
        self,
        manager: str,
        *,
        join: Callable[[str], Awaitable[str]],
        fetch: Callable[[], Awaitable[Iterable[N]]],
    ) -> None:
        self.away = "roost has not joined it yet"
        self.nodes: Mapping[str, N] = {}
        self._manager = manager
        self._join = join
        self._fetch = fetch
        self._on_nodes: Callable[[Collection[str], Collection[str]], None] | None = None
        self._read_at = 0.0
        self._fetched: Iterable[N] | None = None
        self._reading: asyncio.Task[None] | None = None

    def listen(self, on_nodes: Callable[[Collection[str], Collection[str]], None]) -> None:
        """Call `on_nodes(changed, gone)` with the ids of nodes after each reading that shows a change."""
        self._on_nodes = on_nodes

    async def join(self, address: str) -> str:
        """Join the cluster, last seen at `address`; return its address. Raises `BackendUnavailable`, `ConfigError`."""
        try:
            joined = await self._join(address)
        except BackendUnavailable as problem:
            self.away = str(problem)
            raise
        self.away = ""
        await self.read()
        return joined

    async def read(self, *, max_age_s: float = 0.0) -> None:
        """Read the nodes, unless the last reading is no older than `max_age_s`. Callers share one reading."""
        if self._read_at and time.monotonic() - self._read_at <= max_age_s:
            return
        if self._reading is None or self._reading.done():
            self._reading = start_shared(self._read())
        await join_shared(self._reading)

    def expire(self) -> None:
        """Make the next `read` ask the manager again, because something has changed."""
        self._read_at = 0.0

    def check(self) -> None:
        """Raise `BackendUnavailable` while the manager is away."""
        if self.away:
            raise BackendUnavailable(f"the {self._manager} cluster is away: {self.away}")

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        read_at = time.monotonic()
        try:
            self.check()
            fetched = await self._fetch()
        except BackendUnavailable as problem:
            if not self.away:
                self.away = str(problem)
                log.warning("the %s cluster is away: %s", self._manager, problem)
            raise
        if fetched is self._fetched:
            self._read_at = read_at
            return
        nodes = {node.id: node for node in fetched}
        changed = [
            name
            for name, node in nodes.items()
            if (known := self.nodes.get(name)) is not node and known != node
        ]
        gone = self.nodes.keys() - nodes.keys()
        self.nodes, self._fetched, self._read_at = nodes, fetched, read_at
        if self._on_nodes is not None and (changed or gone):
            self._on_nodes(changed, gone)
