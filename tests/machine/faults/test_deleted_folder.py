"""A program that cleans /tmp deletes the runtime folder under a running service and agent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kit.machine.daemons import daemon_pids, wait_gone
from kit.machine.tiny_kernel import tiny
from roost.launchers.daemon.process import is_running, start_time
from roost.scheduler.client.client import Client
from roost.scheduler.errors import RoostError

SECONDS = 10.0


async def test_kernels_live_on_and_no_other_starts(client: Client, settled_runtime_dir: Path) -> None:
    kernel = await client.start(tiny())
    pids = [pid for kind in ("scheduler", "agent") for pid in daemon_pids(settled_runtime_dir, kind)]
    shutil.rmtree(settled_runtime_dir, ignore_errors=True)
    with pytest.raises(
        RoostError, match=r"was deleted, so its service starts no kernel: shut down the kernels"
    ):
        await client.start(tiny())
    assert [found.pid for found in await client.kernels()] == [kernel.pid]
    assert is_running(kernel.pid, start_time(kernel.pid))
    await client.stop(kernel.id, grace_s=0)
    assert all(wait_gone(pid, SECONDS) for pid in pids)
    later = await client.start(tiny())
    await client.stop(later.id, grace_s=0)


async def test_without_kernels_nothing_goes_on(client: Client, settled_runtime_dir: Path) -> None:
    kernel = await client.start(tiny())
    await client.stop(kernel.id, grace_s=0)
    client.close()
    pids = [pid for kind in ("scheduler", "agent") for pid in daemon_pids(settled_runtime_dir, kind)]
    assert len(pids) == 2
    shutil.rmtree(settled_runtime_dir, ignore_errors=True)
    assert all(wait_gone(pid, SECONDS) for pid in pids)
    settled_runtime_dir.mkdir(mode=0o700, exist_ok=True)
