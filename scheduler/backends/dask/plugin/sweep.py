"""Leases that no agent has noted, in Dask's scheduler: they are nobody's, and given back.

Whoever took one has died before its kernel could be started, or its agent has let it go while no scheduler of roost's
was there to hear of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

EVERY_S = 60.0
"""Longer than an agent needs to be brought up, and to note a lease: one that twice is not noted never will be."""
_ASK_S = 5.0


async def sweep(plugin: Any, every_s: float = EVERY_S) -> None:
    """Look again and again, for as long as `plugin` is roost's in its scheduler."""
    suspects: set[str] = set()
    while True:
        await asyncio.sleep(every_s)
        if plugin.scheduler.plugins.get(plugin.name) is not plugin:
            return
        found: set[str] = set()
        for machine in {lease.machine for lease in plugin.ledger.leases.values()}:
            found |= await _not_noted(plugin, machine)
        for lease_id in found & suspects:
            await plugin.release(lease_id)
        suspects = found - suspects


async def _not_noted(plugin: Any, machine: str) -> set[str]:
    """The granted leases on a machine that its agent has not noted; none where somebody there does not say."""
    leases = [lease.lease_id for lease in plugin.ledger.leases_on(machine) if not lease.is_wish]
    left = set(leases)
    for server in plugin.servers(machine):
        try:
            noted: Iterable[str] | None = await asyncio.wait_for(
                plugin.scheduler.rpc(server).roost_noted(lease_ids=leases), _ASK_S
            )
        except (OSError, asyncio.TimeoutError):
            plugin.nannies.pop(server, None)  # one that has ended is not asked again
            return set()
        if noted is None:  # it has not been told of this plugin
            return set()
        left -= set(noted)
    return left
