"""The process of a simulated cluster: `python -m simulated.cluster FOLDER NODES`.

It prints a line when all agents listen, and ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from roost.launchers.daemon.tasks import cancel_all, spawn
from roost.launchers.protocol.messages import Lease
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.placement import Device, Node
from roost.scheduler.backends.agent_per_node.manager import StartedAgent
from roost.testing import FakeAgent

from .relay import RelayedAgent

log = logging.getLogger(__name__)

CPUS, MEMORY_BYTES, GPUS = 32.0, 256 << 30, 4
MOST_SOCKETS = 1_000
"""The largest number of nodes with a socket for each agent. In larger clusters, all agents share a connection."""
_REPORTS_S = 60.0
"""How often each agent reports the use of its node, as a real agent does if nothing has changed."""
_PAGE = 1_000
"""A message has at most this many nodes or leases."""


class SimulatedCluster:
    """The manager, which knows the leases, and one fake agent per node. A large cluster's agents have no sockets."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self._claims: dict[str, Lease] = {}
        kind = FakeAgent if nodes <= MOST_SOCKETS else RelayedAgent
        self._agents = [
            kind(folder / name, name=name, cpus=CPUS, memory_bytes=MEMORY_BYTES, gpus=GPUS)
            for name in (f"node-{number:05}" for number in range(nodes))
        ]
        self._by_name = {agent.name: agent for agent in self._agents}
        self._server = RpcServer(
            {
                "nodes": Operation(self._nodes),
                "claim": Operation(self._claim, Lease),
                "release": Operation(self._release),
                "claims": Operation(self._list),
                "has_claim": Operation(self._has),
                "agent": Operation(self._relay),
            }
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        for agent in self._agents:
            if isinstance(agent, RelayedAgent):
                agent.publish = self._server.publish

    def start(self, socket: Path) -> None:
        self._server.start(f"ipc://{socket}")
        spawn(self._report(), self._tasks, log)

    async def close(self) -> None:
        await cancel_all(self._tasks)
        await self._server.close()
        for agent in self._agents:
            await agent.close()

    async def _report(self) -> None:
        while True:
            for agent in self._agents:
                await asyncio.sleep(_REPORTS_S / len(self._agents))
                agent.report_status()

    def _nodes(self, after: int) -> list[tuple[Node, StartedAgent]]:
        return [
            (_build_node(agent.name), StartedAgent(address=agent.address, daemon=agent.name))
            for agent in self._agents[after : after + _PAGE]
        ]

    def _claim(self, lease: Lease) -> bool:
        self._claims[lease.id] = replace(lease, state="held", reason="")
        return True

    def _release(self, lease_id: str) -> None:
        self._claims.pop(lease_id, None)

    def _list(self, after: int) -> list[Lease]:
        return list(self._claims.values())[after : after + _PAGE]

    def _has(self, lease_id: str) -> bool:
        return lease_id in self._claims

    async def _relay(self, name: str, op: str, arguments: Any) -> Any:
        return await self._by_name[name].operations[op].answer(op, arguments)


def _build_node(name: str) -> Node:
    devices = tuple(Device(id=str(number), model="T4") for number in range(GPUS))
    return Node(id=name, cpus=CPUS, memory_bytes=MEMORY_BYTES, devices=devices)


async def serve(folder: Path, nodes: int) -> None:
    """Run the manager and all agents until standard input is closed. Ctrl-C is for the process that closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cluster = SimulatedCluster(folder, nodes)
    cluster.start(folder / "manager")
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await cluster.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
