"""Finds the agents in containers, and asks them what YARN does not know."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from roost.launchers.daemon.tasks import backoff
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentAddress, Lease
from roost.launchers.protocol.rpc import RpcError

from .derived_keys import DerivedKeys
from .held import Held
from .master.messages import Container

log = logging.getLogger(__name__)

T = TypeVar("T")

_LISTENS_S = (*[0.03] * 60, *[0.2] * 50)
"""Pauses between attempts to reach the agent of a new container."""
_LISTENS_LATE_S = 1.0
_STRAY_S = 600.0
"""How long roost tries to end a kernel on a node that YARN has given up."""
_STRAY_LATE_S = 10.0


class ContainerAgents:
    """The agents in the containers of a service."""

    def __init__(self, keys: DerivedKeys) -> None:
        self._keys = keys

    async def find(self, held: Held, is_wanted: Callable[[], bool]) -> bool:
        """Look for the agent of a container until it listens; return False if it is not wanted any more."""
        for pause_s in itertools.chain(_LISTENS_S, itertools.repeat(_LISTENS_LATE_S)):
            if not is_wanted() or held.container is None:
                break
            held.address = await self._keys.find_agent(held.container.node, held.number)
            if held.address is not None:
                return True
            await asyncio.sleep(pause_s)
        return False

    async def read_lease(self, container: Container) -> tuple[Lease, AgentAddress] | None:
        """Return the lease in a container and its agent's address; None if the agent does not report a lease.

        A master that was started again does not know the lease.
        """
        address = await self._keys.find_agent(container.node, container.number)
        if address is None:
            return None
        try:
            leases = await _call(address, lambda client: client.holdings())
        except (RpcError, asyncio.TimeoutError) as problem:
            log.info("container=%s its agent does not answer: %s", container.container_id, problem)
            return None
        return (leases.leases[0], address) if leases.leases else None

    async def end_stray(self, held: Held) -> None:
        """End the kernel on a node that YARN has given up, because the kernel may live on there."""
        deadline = time.monotonic() + _STRAY_S
        pauses = backoff(_LISTENS_LATE_S, _STRAY_LATE_S)
        while held.container is not None and time.monotonic() < deadline:
            address = await self._keys.find_agent(held.container.node, held.number)
            if address is not None:
                try:
                    await _call(address, lambda client: client.release(held.lease.id))
                except (RpcError, asyncio.TimeoutError) as problem:
                    log.info("lease=%s its agent does not answer: %s", held.lease.id, problem)
                else:
                    log.warning("lease=%s its kernel has outlived its container and is ended", held.lease.id)
                    return
            await asyncio.sleep(next(pauses))


async def _call(address: AgentAddress, call: Callable[[AgentClient], Awaitable[T]]) -> T:
    client = AgentClient(address.endpoint, address.keys)
    await client.connect()
    try:
        return await call(client)
    finally:
        await client.close()
