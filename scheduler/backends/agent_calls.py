"""Calls to agents: one connection for each endpoint, shared by all callers, and one rule for repeating a call."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from roost.launchers.daemon.tasks import join_shared, spawn, start_shared
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentAddress, AgentEvent
from roost.launchers.protocol.rpc import Disconnected, RemoteError, RpcError
from roost.scheduler.errors import (
    BackendUnavailable,
    KernelDied,
    LaunchError,
    LaunchTimeout,
    LeaseConflict,
    RoostError,
    UnknownKernel,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_S = 5.0
_LISTENS_S = (*[0.03] * 60, *[0.2] * 50)
"""Pauses between attempts to reach a new agent. It listens soon, unless its image or archive is still on the way."""
_LISTENS_LATE_S = 1.0
"""The pause between later attempts."""

AgentListener = Callable[[str, AgentEvent | None], None]
"""Receives an endpoint with an event, or with None when the connection to that endpoint is lost."""

Resolve = Callable[[], Awaitable[AgentAddress]]
"""Returns an agent's address, and starts the agent if need be."""

OnLost = Callable[[AgentAddress | None], Awaitable[object]]
"""Receives the address of an agent that is unreachable; None if `Resolve` failed."""


class LeaseGone(LaunchError):
    """The agent does not know the lease: the agent gave it up, or the agent's files are gone."""


_ERRORS: dict[str, type[RoostError]] = {
    "conflict": LeaseConflict,
    "kernel_died": KernelDied,
    "launch_timeout": LaunchTimeout,
    "no_lease": LeaseGone,
    "unknown_kernel": UnknownKernel,
}
"""The exceptions for the error kinds of the agent's protocol. Any other kind becomes a `LaunchError`."""


class Agents:
    """The connections to agents, by endpoint. A lost connection is made again when it is next needed."""

    def __init__(self) -> None:
        self._clients: dict[str, asyncio.Task[AgentClient]] = {}
        self._listeners: list[AgentListener] = []
        self._closing: set[asyncio.Task[Any]] = set()

    def listen(self, listener: AgentListener) -> None:
        """Call `listener` with every event and loss from now on.

        `listener` must be quick and must not raise.
        """
        self._listeners.append(listener)

    async def client(self, address: AgentAddress) -> AgentClient:
        """Return the connection to that agent; raise `BackendUnavailable` if the agent does not answer in seconds."""
        endpoint = address.endpoint
        if (client := self.connected(endpoint)) is not None:
            return client
        # Callers share an attempt under way. After a failed one, the next caller begins another.
        task = self._clients.get(endpoint)
        if task is None or task.done():
            task = self._clients[endpoint] = start_shared(self._connect(address))
        try:
            return await join_shared(task)
        except (RpcError, asyncio.TimeoutError, OSError) as problem:
            raise BackendUnavailable(f"the agent at {endpoint} does not answer: {problem}") from problem

    def connected(self, endpoint: str) -> AgentClient | None:
        """Return the live connection to that endpoint, or None."""
        task = self._clients.get(endpoint)
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    async def leave(self) -> None:
        """Have all agents that are connected end themselves. One that does not answer ends when it is idle."""
        clients = [
            found for endpoint in list(self._clients) if (found := self.connected(endpoint)) is not None
        ]
        for outcome in await asyncio.gather(*(each.leave() for each in clients), return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("an agent does not leave: %s", outcome)

    async def close(self) -> None:
        """Close all connections."""
        tasks = list(self._clients.values())
        # Cleared before anything is awaited: a connection that is lost meanwhile is then not reported.
        self._clients.clear()
        self._listeners.clear()
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, AgentClient):
                await outcome.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _connect(self, address: AgentAddress) -> AgentClient:
        endpoint = address.endpoint
        is_connected = False  # until then no connection is lost: the caller of `client` gets the error

        def on_event(event: AgentEvent) -> None:
            for listener in list(self._listeners):
                listener(endpoint, event)

        def on_lost() -> None:
            if is_connected:
                log.info("agent=%s the connection is lost", endpoint)
            # The client calls this itself, so it can be closed only afterwards.
            spawn(client.close(), self._closing, log)
            # Removed before the listeners run: a listener that calls the agent needs a new connection.
            if self._clients.pop(endpoint, None) is not None and is_connected:
                for listener in list(self._listeners):
                    listener(endpoint, None)

        client = AgentClient(endpoint, address.keys, on_event=on_event, on_lost=on_lost)
        await client.connect(timeout_s=CONNECT_S)
        is_connected = True
        return client


@dataclass(frozen=True, slots=True)
class AgentCaller:
    """Calls one agent, and repeats a call if the agent was lost: every operation of an agent may be repeated."""

    agents: Agents
    resolve: Resolve
    name: str
    """The agent's name in error texts."""
    on_lost: OnLost
    """Runs after an attempt that lost the agent. If it raises an error, the error ends the call."""
    pauses_s: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    """The pause before each attempt."""
    give_up_s: float = math.inf
    """No attempt begins later than this."""

    async def call(self, call: Callable[[AgentClient], Awaitable[T]]) -> T:
        """Return what `call` returns; raise `BackendUnavailable`, or the error that the agent answers (`_ERRORS`)."""
        problem: Exception | None = None
        began = time.monotonic()
        for pause_s in self.pauses_s:
            if time.monotonic() - began > self.give_up_s:
                break
            if pause_s:
                await asyncio.sleep(pause_s)
            address: AgentAddress | None = None
            try:
                address = await self.resolve()
                return await call(await self.agents.client(address))
            except (Disconnected, BackendUnavailable) as lost:
                problem = lost
                # Before the next attempt, so that `resolve` does not return the address that has just failed.
                await self.on_lost(address)
            except RemoteError as refusal:
                raise _ERRORS.get(refusal.kind, LaunchError)(refusal.message, **refusal.fields) from None
            except (RpcError, asyncio.TimeoutError) as late:
                # Not repeated: the agent is there, but so busy that another attempt would wait as long again.
                reason = str(late) or "no answer in time"
                raise BackendUnavailable(f"{self.name} does not answer: {reason}") from late
        raise BackendUnavailable(f"{self.name} cannot be reached: {problem}") from problem


async def until_listening(reach: Callable[[], Awaitable[bool]], is_wanted: Callable[[], bool]) -> bool:
    """Call `reach` until it has reached a new agent, and return True; return False once the agent is not wanted."""
    for pause_s in itertools.chain(_LISTENS_S, itertools.repeat(_LISTENS_LATE_S)):
        if not is_wanted():
            break
        if await reach():
            return True
        await asyncio.sleep(pause_s)
    return False
