"""The connection to an application master is lost while a container is released."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import zmq

from roost.launchers.protocol.rpc import ClientKeys, ServerKeys
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.scheduler.backends.yarn.applications import MasterLine
from roost.scheduler.backends.yarn.master.messages import (
    PROTOCOL,
    Container,
    MasterEvent,
    MasterStatus,
    Numbered,
    Resources,
)
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s

(SERVER, SECRET), (PUBLIC, OWN) = ([key.decode() for key in zmq.curve_keypair()] for _ in range(2))
AMOUNTS = Resources(memory_mb=1, vcores=1)


def container(number: int) -> Container:
    return Container(number=number, lease="lease", state="asked", resources=AMOUNTS)


class Master:
    """A stand-in for a master with two containers, for YARN's report about it, and for the listener of its events."""

    def __init__(self) -> None:
        self.released: list[int] = []
        self.events: asyncio.Queue[MasterEvent] = asyncio.Queue()
        self.connected = asyncio.Event()
        self.server: RpcServer | None = None

    def listen(self) -> None:
        keys = ServerKeys(public=SERVER, secret=SECRET, clients=frozenset([PUBLIC]))
        operations = {
            "hello": Operation(self._hello),
            "containers": Operation(self._containers),
            "release": Operation(self._release, Numbered),
        }
        self.server = RpcServer(operations, keys=keys)
        self.server.start("tcp://127.0.0.1:*")

    async def leave(self) -> None:
        assert self.server is not None
        await self.server.close()
        self.server = None
        self.connected.clear()

    async def _hello(self) -> MasterStatus:
        return MasterStatus(protocol=PROTOCOL, application_id="a", attempt=1, queue="q", maximum=AMOUNTS)

    async def _containers(self) -> list[Container]:
        return [container(number) for number in (1, 2) if number not in self.released]

    async def _release(self, request: Numbered) -> None:
        self.released.append(request.number)

    async def application(self, _: str) -> dict[str, Any]:
        address = self.server.endpoint.removeprefix("tcp://") if self.server else "N/A:-1"
        return {"state": "RUNNING", "amRPCAddress": address, "queue": "q"}

    def on_connected(self, line: MasterLine) -> None:
        self.connected.set()

    def on_event(self, line: MasterLine, event: MasterEvent) -> None:
        self.events.put_nowait(event)

    def on_ended(self, line: MasterLine, reason: str) -> None:
        raise AssertionError(reason)


async def test_a_release_that_the_master_missed_is_repeated_and_late_reports_change_nothing() -> None:
    master = Master()
    master.listen()
    keys = ClientKeys(server=SERVER, public=PUBLIC, secret=OWN)
    line = MasterLine("a", "k", "q", cast("Any", master), keys, "python3", master)
    following = asyncio.ensure_future(line.run())
    try:
        await asyncio.wait_for(master.connected.wait(), allow_s(60))
        assert set(line.containers) == {1, 2}
        await master.leave()
        with pytest.raises(BackendUnavailable):
            await line.release(1)
        master.listen()
        await asyncio.wait_for(master.connected.wait(), allow_s(60))
        assert (master.released, set(line.containers)) == ([1], {2})
        assert master.server is not None
        for number in (1, 2):
            master.server.publish(MasterEvent(kind="container", container=container(number)))
            await asyncio.wait_for(master.events.get(), allow_s(60))
        assert set(line.containers) == {2}
    finally:
        following.cancel()
        await asyncio.wait([following])
        await master.leave()
