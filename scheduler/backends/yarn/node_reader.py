"""`NodeReader`: reads the nodes again and again, and sooner after a change of roost's own containers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

from roost.launchers.daemon.tasks import wait_until_set
from roost.launchers.protocol.messages import Lease
from roost.placement import Node

from .nodes import NodeBook
from .queues import Queues
from .rest import Rest, reading
from .settings import RoostYarnBackend

_PAUSE_S = 1.0
_SHARE = 20.0
"""A pause lasts at least this many times as long as a reading, so readings take 5 % of the time at most."""
_SOON_SHARE = 2.0
"""After a change of roost's own containers, a pause lasts at least this many times as long as a reading."""
_SOON_S = 0.05


class NodeReader:
    """The nodes of the cluster. `counted` returns the leases with a container, by number."""

    def __init__(
        self,
        rest: Rest,
        settings: RoostYarnBackend,
        queues: Queues,
        counted: Callable[[], Mapping[int, Lease]],
    ) -> None:
        self._rest, self._queues, self._counted = rest, queues, counted
        self.book = NodeBook(settings)
        self._soon = asyncio.Event()
        self._took_s = 0.0

    async def read(self) -> bool:
        """Read the nodes; return True if they differ. Raises `BackendUnavailable`."""
        began = time.monotonic()
        raws = await self._rest.nodes()
        with reading():
            differs = self.book.set(raws, self._queues.exclusive_labels, self._counted())
        self._took_s = time.monotonic() - began
        return differs

    def nodes(self, live: Collection[int]) -> list[Node]:
        """Return the nodes as last read, without the amounts that the containers with these numbers promise."""
        return self.book.nodes(live)

    def read_soon(self) -> None:
        """Make `follow` read before its next turn, because a container of roost has changed."""
        self._soon.set()

    async def follow(self, on_change: Callable[[], object]) -> None:
        """Read until cancelled, and call `on_change` when the nodes differ. Raises `BackendUnavailable`."""
        while True:
            pause_s = max(_PAUSE_S, self._took_s * _SHARE)
            if await wait_until_set(self._soon, pause_s):
                await asyncio.sleep(max(_SOON_S, self._took_s * _SOON_SHARE))
            self._soon.clear()
            if await self.read():
                on_change()
