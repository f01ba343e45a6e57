"""The watch on a daemon of the cluster manager, which the agent knows by its address."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import psutil

from kit.machine.container_agent import a_launch, assigned_agent
from roost.launchers.agent.leases.address_watch import watch_address
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s


async def test_a_daemon_that_is_back_within_its_grace_loses_nothing(tmp_path: Path) -> None:
    daemon = socket.create_server(("127.0.0.1", free_port()))
    address = daemon.getsockname()
    now = 0.0
    lost: list[tuple[float, str]] = []

    async def sleep(delay_s: float) -> None:
        nonlocal daemon, now
        now = round(now + delay_s)
        if now in (100, 250):
            daemon.close()
        elif now == 190:
            daemon = socket.create_server(address)

    async def on_lost(reason: str) -> None:
        lost.append((now, reason))

    await watch_address(
        f"127.0.0.1:{address[1]}", "daemon", tmp_path, 100, on_lost, clock=lambda: now, sleep=sleep
    )
    assert lost == [(340, "the daemon of its node has not answered for 100 s")]


async def test_the_kernel_ends_if_the_daemon_of_its_node_stays_away(runtime_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as daemon:
        address = f"127.0.0.1:{daemon.getsockname()[1]}"
        settings = {"daemon_address": address, "daemon_name": "NodeDaemon", "daemon_grace_s": 0.5}
        async with assigned_agent(runtime_dir, a_launch(), **settings) as agent:
            kernel = psutil.Process((await agent.client.launch(a_launch())).pid)
            daemon.close()
            assert await asyncio.wait_for(agent.process.wait(), allow_s(60)) == 0, (
                "the agent leaves with its lease"
            )
            assert not kernel.is_running()


async def test_the_kernel_ends_if_the_daemon_of_its_node_has_removed_its_folder(runtime_dir: Path) -> None:
    """The agent looks every 3 s here. Any other agent would make its folder again within 2 s."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as daemon:
        address = f"127.0.0.1:{daemon.getsockname()[1]}"
        settings = {"daemon_address": address, "daemon_name": "NodeDaemon", "daemon_grace_s": 30.0}
        async with assigned_agent(runtime_dir, a_launch(), **settings) as agent:
            kernel = psutil.Process((await agent.client.launch(a_launch())).pid)
            shutil.rmtree(runtime_dir / "agent")
            assert await asyncio.wait_for(agent.process.wait(), allow_s(60)) == 0, (
                "the agent leaves with its lease"
            )
            assert not kernel.is_running()
