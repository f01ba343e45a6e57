"""Agents without sockets of their own: their messages share the connection to the simulated manager.

The messages are the real ones, in an envelope with the agent's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from roost.launchers.protocol.messages import AgentEvent
from roost.launchers.protocol.rpc import ClientKeys
from roost.launchers.protocol.rpc_client import RpcClient
from roost.placement.model.json_codec import encode_message
from roost.scheduler.backends.base import AgentAddress
from roost.testing import FakeAgent

SCHEME = "relay:"
_NO_KEYS = ClientKeys(server="", public="", secret="")

Publish = Callable[[object], None]


class RelayedAgent(FakeAgent):
    """A fake agent without a socket. `publish` sends its events to the service through the manager's connection."""

    publish: Publish

    def _listen(self) -> None:
        self.address = AgentAddress(endpoint=f"{SCHEME}{self.name}", keys=_NO_KEYS)

    def report(self, event: AgentEvent, but: bytes = b"") -> None:
        if not but:  # else the only subscriber has its answer
            self.publish({"agent": self.name, "event": encode_message(event)})

    async def close(self) -> None:
        """Do nothing: nothing is open."""


class Relay:
    """The service's clients of all agents. They share `connection`, the connection to the simulated manager."""

    def __init__(self, connection: RpcClient) -> None:
        self.connection = connection
        self._clients: dict[str, RelayedClient] = {}

    def open(self, endpoint: str, **options: Any) -> RelayedClient:
        """Return a client of the agent at this endpoint, in place of `RpcClient(endpoint, **options)`."""
        name = endpoint.removeprefix(SCHEME)
        client = self._clients[name] = RelayedClient(self.connection, name, options["on_event"])
        return client

    def receive(self, envelope: Mapping[str, Any]) -> None:
        """Pass an event on to the client of its agent."""
        client = self._clients.get(envelope["agent"])
        if client is not None and client.is_subscribed:
            client.on_event(envelope["event"])


class RelayedClient:
    """The connection to one agent, with the methods of `RpcClient`."""

    def __init__(self, connection: RpcClient, name: str, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._connection, self._name, self.on_event = connection, name, on_event
        self.is_subscribed = False

    @property
    def is_lost(self) -> bool:
        return self._connection.is_lost

    async def connect(self, *, timeout_s: float) -> None:
        """Do nothing: the connection to the manager is there."""

    async def call(self, op: str, arguments: Any = None, *, timeout_s: float) -> Any:
        if op == "subscribe":
            self.is_subscribed = True
            return None
        call = {"name": self._name, "op": op, "arguments": encode_message(arguments or {})}
        return await self._connection.call("agent", call, timeout_s=timeout_s)

    async def close(self) -> None:
        self.is_subscribed = False
