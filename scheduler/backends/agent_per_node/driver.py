"""A connection to a cluster manager, which is away when that is: what the backends of such managers share of it."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from roost.scheduler.errors import BackendUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")


class ManagedNode(Protocol):
    """A node as its cluster manager knows it.

    `id` stays when the manager's daemon there is started again, `daemon` names that daemon. `drains_because` says why
    nothing new is to come there, and is empty where it may.
    """

    @property
    def id(self) -> str: ...

    @property
    def daemon(self) -> str: ...

    @property
    def drains_because(self) -> str: ...


N = TypeVar("N", bound=ManagedNode)

OnNodes = Callable[[Collection[str], Collection[str]], None]
"""Called with the ids of nodes that are new or differ, and of those that are gone."""


class Driver(ABC, Generic[N]):
    """`away` says why the manager cannot be asked, and is empty while it can; `nodes` are those of the last reading."""

    manager: ClassVar[str]
    """What people call it."""
    daemon: ClassVar[str]
    """What they call its process on each node."""

    def __init__(self, on_nodes: OnNodes) -> None:
        self.away = "it has not been joined yet"
        self.nodes: Mapping[str, N] = {}
        self._on_nodes = on_nodes
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def join(self, address: str) -> str:
        """Join the cluster, and read its nodes; what names it. Raises `BackendUnavailable`, `ConfigError`."""
        joined = await self._join(address)
        self.away = ""
        await self.read()
        return joined

    async def read(self, *, max_age_s: float = 0.0) -> None:
        """Read the nodes, once for all who wait for it; raises `BackendUnavailable`, and the manager is away then."""
        if self._read_at and time.monotonic() - self._read_at <= max_age_s:
            return
        if self._reading is None or self._reading.done():
            self._reading = watched(self._read())
        await asyncio.shield(self._reading)

    def forget_reading(self) -> None:
        """Something has changed: whatever age would do, read anew."""
        self._read_at = 0.0

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    @abstractmethod
    async def look(self) -> None:
        """Wait until it is time to read the nodes again."""

    @abstractmethod
    async def _join(self, address: str) -> str: ...

    @abstractmethod
    async def _fetch(self) -> Iterable[N]:
        """All nodes now; raises `BackendUnavailable`."""

    def _check(self) -> None:
        if self.away:
            raise BackendUnavailable(f"the {self.manager} cluster is away: {self.away}")

    async def _read(self) -> None:
        read_at = time.monotonic()
        try:
            self._check()
            nodes = {node.id: node for node in await self._fetch()}
        except BackendUnavailable as problem:
            if not self.away:
                self.away = str(problem)
                log.warning("the %s cluster is away: %s", self.manager, problem)
            raise
        changed = [name for name, node in nodes.items() if self.nodes.get(name) != node]
        gone = self.nodes.keys() - nodes.keys()
        self.nodes, self._read_at = nodes, read_at
        if changed or gone:
            self._on_nodes(changed, gone)


def watched(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose error is nobody's where nobody waits for it any more."""
    task = asyncio.get_running_loop().create_task(coroutine)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def in_short(error: Exception) -> str:
    """The last line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
