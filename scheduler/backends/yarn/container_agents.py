"""Finds the agents in containers, and asks them what YARN does not know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from roost.launchers.daemon.tasks import backoff
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentAddress, Lease
from roost.launchers.protocol.rpc import RpcError
from roost.scheduler.backends.agent_calls import until_listening

from .derived_keys import DerivedKeys
from .held import Held
from .master.messages import Container

log = logging.getLogger(__name__)

T = TypeVar("T")

_STRAY_S = 600.0
"""How long roost tries to end a kernel on a node that YARN has given up."""
_STRAY_PAUSES_S = (1.0, 10.0)
"""First and longest pause between two attempts to end that kernel."""


class ContainerAgents:
    """The agents in the containers of a service."""

    def __init__(self, keys: DerivedKeys) -> None:
        self._keys = keys

    async def find(self, held: Held, is_wanted: Callable[[], bool]) -> bool:
        """Look for the agent of a container until it listens; return False if it is not wanted any more."""

        async def reach() -> bool:
            assert held.container is not None
            held.address = await self._keys.find_agent(held.container.node, held.number)
            return held.address is not None

        return await until_listening(reach, lambda: is_wanted() and held.container is not None)

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
        pauses = backoff(*_STRAY_PAUSES_S)
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
