"""Connections to fake agents without sockets. Each message takes a random time; each can be cut or belated.

As on a real connection, messages that go the same way on one connection keep their order. All others may overtake each
other.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

from roost.launchers.protocol.messages import AgentEvent
from roost.launchers.protocol.rpc import ClientKeys, Disconnected, RemoteError, pack
from roost.launchers.protocol.rpc_server import PEER
from roost.placement.model.json_codec import encode_message
from roost.scheduler.backends.base import AgentAddress
from roost.testing import FakeAgent

_NO_KEYS = ClientKeys(server="", public="", secret="")
_BEATS_S = 10.0
"""A connection to an agent that hangs is lost after this time."""


class Network:
    """The agents by name, and all connections to them. `dice` draws the time that each message takes."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.agents: dict[str, LinkedAgent] = {}
        self.services: dict[str, Service] = {}
        self.links: list[Link] = []

    def open(self, endpoint: str, **options: Any) -> Link:
        """Return a connection to the agent at this endpoint, in place of `RpcClient(endpoint, **options)`."""
        _, service, agent = endpoint.split("/")
        return Link(self.services[service], self.agents[agent], options["on_event"], options["on_lost"])

    def delay_s(self) -> float:
        """Return how long a message takes: mostly milliseconds, sometimes long enough for anything else to happen."""
        return self.dice.choice([0.0, 0.001, 0.01, 0.01, 0.1, 1.0])

    async def travel(self) -> None:
        await asyncio.sleep(self.delay_s())

    def cut(self, agent: LinkedAgent) -> None:
        """Lose all connections to an agent, with all messages that are under way on them."""
        for link in [link for link in self.links if link.agent is agent]:
            link.lose()


class LinkedAgent(FakeAgent):
    """A fake agent that `Link`s reach. While it is not `is_up`, nobody can connect to it."""

    network: Network
    key = ""
    """The name of this agent in the network: that of its node, or that of its lease."""
    is_up = True
    goes_on_at = 0.0
    """Until then the agent hangs."""

    def _listen(self) -> None:
        self.address = AgentAddress(endpoint="", keys=_NO_KEYS)  # each service has one of its own

    def join(self, network: Network, key: str) -> None:
        self.network, self.key = network, key
        network.agents[key] = self

    def report(self, event: AgentEvent, but: bytes = b"") -> None:
        for link in [link for link in self.network.links if link.agent is self and link.is_subscribed]:
            if link.peer != but:
                link.push({"event": encode_message(event)})

    def crash(self) -> None:
        """End the agent without a word. Its kernels live on, and its ledger stays."""
        self.is_up, self.goes_on_at = False, 0.0
        self.network.cut(self)

    @property
    def hangs_s(self) -> float:
        """For how long the agent hangs, as after SIGSTOP. Messages wait, also those of connections that are lost."""
        return max(0.0, self.goes_on_at - asyncio.get_running_loop().time())

    def hang(self, for_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.goes_on_at = max(self.goes_on_at, loop.time() + for_s)
        loop.call_later(_BEATS_S, lambda: self.network.cut(self) if self.hangs_s else None)

    def revive(self) -> None:
        """Start the next agent of this node, if none runs."""
        if not self.is_up:
            self.is_up = True
            self._begin()

    async def expire(self, after_s: float) -> None:
        """Give back each lease that has had no kernel for this time, as a real agent does by its own rules."""
        idle_since: dict[str, float] = {}
        while True:
            await asyncio.sleep(1.0)
            now = asyncio.get_running_loop().time()
            busy = {kernel.lease_id for kernel in self.kernels.values() if kernel.is_running}
            idle = [lease_id for lease_id in self.held_leases() if lease_id not in busy]
            idle_since = {lease_id: idle_since.get(lease_id, now) for lease_id in idle}
            for lease_id in idle if self.is_up and not self.hangs_s else ():
                if now - idle_since[lease_id] > after_s:
                    self.give_back(lease_id)

    async def close(self) -> None: ...


class Service:
    """What a service's connections belong to. Once `is_dead`, nothing that it does has an effect any more."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.is_dead = False
        network.services[name] = self

    def address(self, agent: LinkedAgent) -> AgentAddress:
        return AgentAddress(endpoint=f"model/{self.name}/{agent.key}", keys=_NO_KEYS)

    def kill(self) -> None:
        self.is_dead = True
        for link in [link for link in self.network.links if link.service is self]:
            link.on_lost = lambda: None
            link.lose()


class Link:
    """One connection, with the methods of `RpcClient`."""

    def __init__(
        self,
        service: Service,
        agent: LinkedAgent,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.service, self.agent, self.on_event, self.on_lost = service, agent, on_event, on_lost
        self.peer = str(id(self)).encode()
        self.is_lost = False
        self.is_subscribed = False
        self._pending: set[asyncio.Future[Any]] = set()
        self._arrives_at = [0.0, 0.0]
        """When the last message of each direction arrives: to the agent, to the service."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def connect(self, *, timeout_s: float) -> None:
        await self.service.network.travel()
        await asyncio.wait_for(asyncio.sleep(self.agent.hangs_s), timeout_s)
        if self.service.is_dead or not self.agent.is_up:
            raise Disconnected(f"nobody listens at {self.agent.name}")
        self.service.network.links.append(self)

    async def call(self, op: str, arguments: Any = None, *, timeout_s: float) -> Any:
        if self.is_lost or self.service.is_dead:
            raise Disconnected("the connection was lost")
        request = json.loads(pack({"op": op, "args": encode_message(arguments or {})}))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.add(answer)
        agent = self.agent
        waiting_s, ledger = agent.hangs_s, agent.ledger
        if waiting_s:  # it reads the message later, unless it is killed

            def read() -> None:
                if agent.is_up and agent.ledger is ledger:
                    self._receive(request, answer)

            self._arrives_at[0] = max(self._arrives_at[0], agent.goes_on_at) + 1e-6
            asyncio.get_running_loop().call_at(self._arrives_at[0], read)
        else:
            self._send(0, lambda: self._receive(request, answer))
        try:
            return await asyncio.wait_for(answer, timeout_s)
        finally:
            self._pending.discard(answer)

    async def close(self) -> None:
        self.on_lost = lambda: None
        self.lose()

    def lose(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        if self in self.service.network.links:
            self.service.network.links.remove(self)
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(Disconnected("the connection was lost"))
        asyncio.get_running_loop().call_soon(self.on_lost)

    def push(self, message: dict[str, Any]) -> None:
        """Send an event to the service."""
        event = json.loads(pack(message))["event"]
        self._send(1, lambda: self.on_event(event))

    def _send(self, way: int, arrive: Callable[[], object]) -> None:
        """Call `arrive` after the messages that were sent before on the same way, unless the connection is lost."""
        loop = asyncio.get_running_loop()
        at = self._arrives_at[way] = max(
            self._arrives_at[way] + 1e-6, loop.time() + self.service.network.delay_s()
        )
        loop.call_at(at, lambda: None if self.is_lost else arrive())

    def _receive(self, request: dict[str, Any], answer: asyncio.Future[Any]) -> None:
        async def work() -> None:
            PEER.set(self.peer)
            name = request["op"]
            if name == "subscribe":
                self.is_subscribed = True
                self._answer(answer, None)
                self.agent.report_status()
                return
            try:
                result = await self.agent.operations[name].answer(name, request["args"])
            except RemoteError as problem:
                self._fail(answer, problem)
            else:
                self._answer(answer, json.loads(pack({"ok": encode_message(result)}))["ok"])

        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(self, answer: asyncio.Future[Any], result: Any) -> None:
        self._send(1, lambda: None if answer.done() else answer.set_result(result))

    def _fail(self, answer: asyncio.Future[Any], problem: RemoteError) -> None:
        self._send(1, lambda: None if answer.done() else answer.set_exception(problem))
