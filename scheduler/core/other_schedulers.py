"""The kernels that users have through other schedulers of the same cluster. The caps of a user count them, too."""

from __future__ import annotations

import asyncio
import time

from roost.launchers.daemon.tasks import join_shared, start_shared
from roost.placement.model import Request
from roost.scheduler.backends.base import Backend, Lease
from roost.scheduler.errors import BackendUnavailable

from .kernel_table import KernelTable

_AS_LONG = 20.0
_MOST_S = 2.0
"""A reading of the leases is used for 20 times as long as it took, but at most for two seconds."""


class OtherSchedulers:
    """The leases of other schedulers, as the last reading has them."""

    def __init__(self, backend: Backend, table: KernelTable) -> None:
        self._backend = backend
        self._table = table
        self._reading: asyncio.Task[list[Lease]] | None = None
        self._use_until = 0.0

    async def held_by(self, user: str, *, is_fresh: bool = False) -> dict[str, Request]:
        """Return the requests of this user's kernels by their ids. With `is_fresh`, read the leases again."""
        reading = self._reading
        if reading is None or is_fresh or (reading.done() and time.monotonic() >= self._use_until):
            reading = self._reading = start_shared(self._read())
        leases = await join_shared(reading)
        return {lease.kernel_id: lease.request for lease in leases if lease.owner.user == user}

    async def _read(self) -> list[Lease]:
        began = time.monotonic()
        try:
            leases = (await self._backend.leases()).leases
        except BackendUnavailable:  # then it gives no new lease either
            return []
        now = time.monotonic()
        self._use_until = now + min(_AS_LONG * (now - began), _MOST_S)
        return [lease for lease in leases if lease.state != "lost" and not self._table.is_own(lease)]
