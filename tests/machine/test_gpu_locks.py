"""GPUs that several agents of a node share out among themselves, with real processes."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from kit.machine.container_agent import LEASE, a_launch, assigned_agent
from kit.machine.other_user import OTHER_USER, claimed_by_another_user
from roost.launchers.agent.machine import gpu_locks
from roost.launchers.agent.machine.gpu_locks import GpuLocks
from roost.launchers.protocol.rpc import RemoteError
from roost.placement import Request
from roost.placement.model import Device
from roost.testing.deadlines import allow_s

DEVICES = [Device(id=str(index)) for index in range(4)]
SHOW_DEVICES = """
import json, os, signal, socket, sys
print(*(os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")), flush=True)
connection = json.load(open(sys.argv[1]))
servers = [socket.create_server((connection["ip"], connection[name])) for name in ("shell_port", "iopub_port")]
signal.pause()
"""
ARGV = (sys.executable, "-S", "-c", SHOW_DEVICES, "{connection_file}")
TWO_GPUS = replace(LEASE, request=Request(gpus=2))


@pytest.fixture
def node() -> str:
    """Return a node name that no other test uses."""
    return uuid.uuid4().hex


async def test_a_device_has_one_holder_until_it_is_given_back(node: str) -> None:
    mine, theirs = GpuLocks(node, wait_s=0), GpuLocks(node, wait_s=0)
    assert await mine.hold(DEVICES, 3) == ("0", "1", "2")
    assert await mine.hold(DEVICES, 3) == ("0", "1", "2"), "a restart keeps them"
    with pytest.raises(RemoteError, match="fewer than 2 of the node's 4 GPUs are free"):
        await theirs.hold(DEVICES, 2)
    assert await theirs.hold(DEVICES, 1) == ("3",), "the refused call has kept none"
    mine.close()
    assert len(await theirs.hold(DEVICES, 4)) == 4
    theirs.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_device_that_another_user_holds_is_refused_with_its_process(node: str) -> None:
    locks = GpuLocks(node, wait_s=0)
    with claimed_by_another_user([locks._name(device.id) for device in DEVICES[:1]]) as pid:
        with pytest.raises(RemoteError, match="fewer than 4") as refusal:
            await locks.hold(DEVICES, 4)
        known = f": process {pid} of the user with uid {OTHER_USER} holds GPU 0"
        assert str(refusal.value).endswith(known)
        assert await locks.hold(DEVICES, 3) == ("1", "2", "3")
    locks.close()


async def test_the_nodes_of_one_machine_do_not_share(node: str) -> None:
    mine, theirs = GpuLocks(node, wait_s=0), GpuLocks(f"{node}-2", wait_s=0)
    assert await mine.hold(DEVICES, 4) == await theirs.hold(DEVICES, 4)
    mine.close()
    theirs.close()


async def test_devices_that_others_use_come_last(node: str) -> None:
    locks = GpuLocks(node, wait_s=0)
    used = [Device(id="0", memory_used_bytes=10), Device(id="1", memory_used_bytes=5), Device(id="2")]
    assert await locks.hold(used, 2) == ("1", "2")
    locks.close()


async def test_the_devices_of_a_killed_process_are_free_again(node: str) -> None:
    code = (
        "import asyncio, sys; from roost.launchers.agent.machine.gpu_locks import GpuLocks;"
        "from roost.placement.model import Device;"
        "locks = GpuLocks(sys.argv[1]); asyncio.run(locks.hold([Device(id='0')], 1));"
        "print('held', flush=True); sys.stdin.read()"
    )
    pipe = asyncio.subprocess.PIPE
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", code, node, stdin=pipe, stdout=pipe)
    assert holder.stdout is not None
    assert await asyncio.wait_for(holder.stdout.readline(), allow_s(60)) == b"held\n"
    locks = GpuLocks(node, wait_s=10)
    waiting = asyncio.ensure_future(locks.hold(DEVICES[:1], 1))
    await asyncio.sleep(2 * gpu_locks._RETRY_S)
    assert not waiting.done()
    holder.kill()
    await holder.wait()
    assert await waiting == ("0",)
    locks.close()


async def test_kernels_of_a_node_get_devices_of_their_own(runtime_dir: Path, node: str) -> None:
    launch = a_launch(ARGV)
    seen: set[str] = set()
    (runtime_dir / "1").mkdir()
    (runtime_dir / "2").mkdir()
    settings = {"lease": TWO_GPUS, "gpus": 4, "gpu_visibility": "locks", "node": node}
    async with (
        assigned_agent(runtime_dir / "1", launch, **settings) as one,
        assigned_agent(runtime_dir / "2", launch, **settings) as two,
    ):
        for agent in (one, two):
            process = await agent.client.launch(launch)
            shown, order = (await agent.client.logs("k", 100)).split()
            assert tuple(shown.split(",")) == process.device_ids
            assert order == "PCI_BUS_ID"
            seen.update(process.device_ids)
    assert seen == {"0", "1", "2", "3"}


async def test_isolated_devices_are_left_alone(runtime_dir: Path, node: str) -> None:
    launch = a_launch(ARGV)
    settings = {"lease": TWO_GPUS, "gpus": 2, "gpu_visibility": "locks", "node": node}
    async with assigned_agent(runtime_dir, launch, **settings) as agent:
        process = await agent.client.launch(launch)
        assert process.device_ids == ("0", "1")
        assert await agent.client.logs("k", 100) == "None None\n"
