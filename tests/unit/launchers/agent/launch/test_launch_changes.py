"""The devices that a kernel's variables name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kit.machine.container_agent import LEASE, a_launch
from kit.machine.real_agent import no_limits
from roost.launchers.agent.launch.launch_changes import LaunchChanges
from roost.launchers.agent.machine.gpus import DeviceReader
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.rpc import RemoteError
from roost.placement.model import Request

CUDA, HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
ONE = replace(LEASE, request=Request(gpus=1, visible_gpus=("2", "3")), device_ids=("2",))


@pytest.fixture
def changes(runtime_dir: Path) -> Iterator[LaunchChanges]:
    changes = LaunchChanges(AgentSettings(), no_limits(), DeviceReader(4), has_devices=True)
    yield changes
    changes.close()


async def test_a_kernel_finds_its_devices_in_each_variable(changes: LaunchChanges) -> None:
    launch = replace(a_launch(), env={CUDA: "2,3", HIP: "2,3"})
    ready, device_ids = await changes.prepare(launch, ONE)
    assert (ready.env[CUDA], ready.env[HIP], ready.env["CUDA_DEVICE_ORDER"]) == ("2", "2", "PCI_BUS_ID")
    assert device_ids == ("2",)
    none = replace(LEASE, request=Request())
    assert (await changes.prepare(launch, none))[0].env[CUDA] == ""


async def test_a_kernel_whose_prologue_names_other_gpus_does_not_start(changes: LaunchChanges) -> None:
    with pytest.raises(RemoteError, match="its variables name the GPUs 3, and its lease has another one"):
        await changes.prepare(replace(a_launch(), env={CUDA: "3"}), ONE)
    ready, _ = await changes.prepare(replace(a_launch(), env={CUDA: "2"}), ONE)
    assert ready.env[CUDA] == "2"
