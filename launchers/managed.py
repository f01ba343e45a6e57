"""What an agent does about the cluster manager on whose node it runs: it watches the manager's daemon there.

A daemon that ends while the manager answers: the node has left the cluster, and its leases are gone. A daemon that
ends because the manager is gone: the kernels live on for a grace, in which the same cluster may come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from .files import read_json, write_private_json
from .messages import Manager
from .process import Watch
from .wire import WireError, decode, encode

log = logging.getLogger(__name__)

_SETTLE_S = 1.0
"""A manager and its daemon that are ended together end in any order."""
_CONNECT_S = 2.0

Lost = Callable[[str], Awaitable[None]]
"""Called with a sentence when all leases of this node are lost."""
CutOff = Callable[[str], None]
"""Called with a sentence at once when the daemon ends: whatever becomes of leases, there is no new one here."""


class Managed:
    """Watches the manager that `watch` was called with last, which `file` remembers for the next agent.

    `is_cut_off` while there is one whose daemon has ended.
    """

    def __init__(self, file: Path, on_lost: Lost, on_cut_off: CutOff) -> None:
        self.is_cut_off = False
        self._file = file
        self._on_lost = on_lost
        self._on_cut_off = on_cut_off
        self._watch: Watch | None = None
        self._losing: asyncio.Task[None] | None = None

    def resume(self) -> None:
        """Watch again what an earlier agent of this folder watched."""
        known = read_json(self._file)
        if known is not None:
            try:
                self._begin(decode(Manager, known, ignore_unknown=True))
            except WireError as problem:
                log.error("%s cannot be read: %s", self._file, problem)

    def watch(self, manager: Manager) -> None:
        """Watch this manager; a grace that runs because of the one before is over."""
        write_private_json(self._file, encode(manager))
        self._begin(manager)

    def close(self) -> None:
        """Stop watching. May be repeated."""
        if self._watch is not None:
            self._watch.close()
        if self._losing is not None:
            self._losing.cancel()

    def _begin(self, manager: Manager) -> None:
        self.close()
        self.is_cut_off = False
        self._watch = Watch(manager.pid, manager.process_started_at, lambda: self._ended(manager))

    def _ended(self, manager: Manager) -> None:
        self.is_cut_off = True
        self._on_cut_off(f"{manager.name}'s daemon here has ended")
        self._losing = asyncio.get_running_loop().create_task(self._lose(manager))

    async def _lose(self, manager: Manager) -> None:
        await asyncio.sleep(_SETTLE_S)
        if await _answers(manager.address):
            reason = f"its node has left the {manager.name} cluster"
        else:
            log.warning("the %s cluster is gone; kernels stay for %g s", manager.name, manager.grace_s)
            await asyncio.sleep(manager.grace_s)
            reason = f"the {manager.name} cluster did not come back within {manager.grace_s:g} s"
        log.warning("all leases are lost: %s", reason)
        await self._on_lost(reason)


async def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), _CONNECT_S)
    except (OSError, ValueError, asyncio.TimeoutError):  # ValueError: that is no address
        return False
    writer.close()
    return True
