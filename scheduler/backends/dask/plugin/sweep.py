"""Releases the leases in Dask's scheduler that no agent has noted, because they have no kernel.

roost's scheduler ended before the kernel's start, or the agent released the lease while no scheduler of roost ran.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

EVERY_S = 60.0
"""How long to wait between two checks. An agent needs less time to start and to note a lease."""
_ASK_S = 5.0


async def sweep(plugin: Any, every_s: float = EVERY_S) -> None:
    """Release each lease that no agent had in two checks in a row. Return once `plugin` has been replaced."""
    suspects: set[str] = set()
    while True:
        await asyncio.sleep(every_s)
        if plugin.scheduler.plugins.get(plugin.name) is not plugin:
            return
        found: set[str] = set()
        for machine in {lease.machine for lease in plugin.ledger.leases.values()}:
            found |= await _find_missing(plugin, machine)
        for lease_id in found & suspects:
            await plugin.release(lease_id)
        suspects = found - suspects


async def _find_missing(plugin: Any, machine: str) -> set[str]:
    """Return the granted leases on a machine that its agent has not noted; none if a server there does not answer."""
    leases = [lease.lease_id for lease in plugin.ledger.leases_on(machine) if not lease.is_wish]
    left = set(leases)
    for server in plugin.servers(machine):
        try:
            noted: Iterable[str] | None = await asyncio.wait_for(
                plugin.scheduler.rpc(server).roost_noted(lease_ids=leases), _ASK_S
            )
        except (OSError, asyncio.TimeoutError):
            plugin.nannies.pop(server, None)  # a nanny that has ended is not asked again
            return set()
        if noted is None:  # the server has not received this plugin
            return set()
        left -= set(noted)
    return left
