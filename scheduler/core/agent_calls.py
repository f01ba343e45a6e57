"""The scheduler's connections to agents: one for each endpoint, shared by all who need it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentEvent
from roost.launchers.protocol.rpc import RpcError
from roost.scheduler.backends.base import AgentAddress
from roost.scheduler.errors import BackendUnavailable

log = logging.getLogger(__name__)

CONNECT_S = 5.0

AgentListener = Callable[[str, AgentEvent | None], None]
"""Called with an endpoint and an event, or None when the connection to it was lost."""


class Agents:
    """Connections by endpoint. Those that are lost are forgotten, and made again when next asked for."""

    def __init__(self) -> None:
        self._clients: dict[str, asyncio.Task[AgentClient]] = {}
        self._listeners: list[AgentListener] = []
        self._closing: set[asyncio.Task[None]] = set()

    def listen(self, listener: AgentListener) -> None:
        """Call `listener`, which is quick and does not raise, with every event and loss from now on."""
        self._listeners.append(listener)

    async def client(self, address: AgentAddress) -> AgentClient:
        """The connection to that agent; raises `BackendUnavailable` when there is none to be had in seconds."""
        task = self._clients.get(address.endpoint)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.get_running_loop().create_task(self._connect(address))
            self._clients[address.endpoint] = task
        if task.done():
            return task.result()
        try:
            return await asyncio.shield(task)
        except (RpcError, asyncio.TimeoutError, OSError) as problem:
            raise BackendUnavailable(
                f"the agent at {address.endpoint} does not answer: {problem}"
            ) from problem

    def connected(self, endpoint: str) -> AgentClient | None:
        """The connection to that endpoint, if there is a live one."""
        task = self._clients.get(endpoint)
        is_there = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return task.result() if task is not None and is_there else None

    async def close(self) -> None:
        """Close all connections."""
        tasks = list(self._clients.values())
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
        is_connected = False  # one that never came about is not lost: who asked for it hears of that

        def on_event(event: AgentEvent) -> None:
            for listener in list(self._listeners):
                listener(endpoint, event)

        def on_lost() -> None:
            log.info("agent=%s the connection was lost", endpoint)
            self._dispose(client)
            if self._clients.pop(endpoint, None) is not None and is_connected:
                for listener in list(self._listeners):
                    listener(endpoint, None)

        client = AgentClient(endpoint, address.keys, on_event=on_event, on_lost=on_lost)
        await client.connect(timeout_s=CONNECT_S)
        is_connected = True
        return client

    def _dispose(self, client: AgentClient) -> None:
        """Close a connection that is lost, off the callback that says so."""
        task = asyncio.get_running_loop().create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
