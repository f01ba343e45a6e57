"""Claims on YARN are refused on a full node. While the ResourceManager is away, they wait and say why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.yarn import creation
from roost.scheduler.backends.yarn.creation import ContainerCreator
from roost.scheduler.backends.yarn.held import Held
from roost.scheduler.backends.yarn.master.messages import (
    Ask,
    Container,
    MasterStatus,
    Numbered,
    Probed,
    Resources,
)
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.errors import BackendUnavailable, LeaseConflict

AMOUNTS = Resources(memory_mb=1024, vcores=1)
LEASE = Lease(id="a", kernel_id="k", node_id="n", request=Request(cpus=1), owner=Owner(user="ada"))


class FullNode:
    """A full node, a master that grants nothing, and a lease with its ask. `called` are the master's operations."""

    def __init__(self) -> None:
        self.is_away = self.is_rest_away = self.is_node_silent = False
        self.cpus_promised = 4
        self.called: list[str] = []
        self.book = SimpleNamespace(racks=lambda hosts: {}, daemon=lambda host: f"{host}:8041")
        self.user = "ada"
        self.queue, self.is_connected, self.application_id = "default", True, "application_1"
        everything: Any = self
        self.creator = ContainerCreator(RoostYarnBackend(), *[everything] * 6)
        ask = Ask(number=1, lease="", resources=AMOUNTS, command="", archive="", assignment_base64="")
        self.held = Held(LEASE, 1, everything, ask)

    async def read(self) -> None:
        if self.is_rest_away:
            raise BackendUnavailable("it refuses connections")

    def find(self, queue: str) -> None:
        return None

    async def read_queues(self, rest: object) -> None:
        await self.read()

    def nodes(self, live: object) -> list[Node]:
        return [Node(id="n", cpus=4, cpus_promised=self.cpus_promised)]

    async def wait(self, timeout_s: float) -> bool:
        return True

    async def release(self, number: int) -> None:
        self.called.append("release")

    async def call(self, kind: type, op: str, arguments: Numbered | None = None) -> Any:
        self.called.append(op)
        if kind is MasterStatus:
            return MasterStatus(
                protocol=1, application_id="", attempt=1, queue="", maximum=AMOUNTS, is_away=self.is_away
            )
        if kind is Probed:
            return Probed(answers=not self.is_node_silent)
        return Container(number=1, lease="", state="asked", resources=AMOUNTS)


@pytest.fixture
def full_node(monkeypatch: pytest.MonkeyPatch) -> FullNode:
    monkeypatch.setattr(creation, "_MARGIN_S", 0.0)
    world = FullNode()
    world.creator.heartbeat_s = 0.01
    return world


async def test_a_claim_on_a_full_node_is_refused(full_node: FullNode) -> None:
    with pytest.raises(LeaseConflict, match="n has no room for it any more"):
        await full_node.creator.create(full_node.held)
    assert full_node.called[-1] == "release"


@pytest.mark.parametrize("who", ["is_away", "is_rest_away"])
async def test_a_claim_waits_while_the_resource_manager_is_away(full_node: FullNode, who: str) -> None:
    setattr(full_node, who, True)
    await full_node.creator.create(full_node.held)
    assert full_node.called == ["ask", "hello", "widen"]
    assert full_node.held.reason == "YARN's ResourceManager is away"
    assert full_node.held.is_waiting
    setattr(full_node, who, False)
    await full_node.creator.explain(full_node.held)
    assert full_node.held.reason == "no node has room for it now"


async def test_a_claim_on_a_silent_node_says_so(full_node: FullNode) -> None:
    """YARN still shows such a node as running, with room."""
    full_node.cpus_promised, full_node.is_node_silent = 0, True
    await full_node.creator.create(full_node.held)
    assert full_node.called == ["ask", "hello", "widen", "probe"]
    assert full_node.held.reason == "the NodeManager of n does not answer"
    full_node.is_node_silent = False
    await full_node.creator.explain(full_node.held)
    assert full_node.held.reason == "other applications of its queue go first"
