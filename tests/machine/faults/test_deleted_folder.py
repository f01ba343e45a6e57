"""A program that cleans /tmp deletes the runtime folder under a running service and agent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kit.machine.daemons import agent_folder, daemon_pids, kill, wait_gone
from kit.machine.tiny_kernel import tiny
from roost.launchers.daemon.process import is_running, start_time
from roost.scheduler.client.client import Client
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import allow_s, until

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


async def test_damaged_files_leave_no_process_behind(client: Client, settled_runtime_dir: Path) -> None:
    """A kernel is ended if its files are so damaged that nobody could find or stop it."""
    damaged, whole = [await client.start(tiny()) for _ in range(2)]
    (pid,) = daemon_pids(settled_runtime_dir, "agent")
    os.kill(pid, signal.SIGSTOP)  # the service starts the next agent as soon as this one has ended
    for file in agent_folder(settled_runtime_dir).glob("kernels/*/record.json"):
        if json.loads(file.read_text())["pid"] == damaged.pid:
            file.write_bytes(b"")
    (agent_folder(settled_runtime_dir) / "kernels" / "stray").write_text("x")
    (agent_folder(settled_runtime_dir) / "leases" / "stray.json").write_text("x")
    kill(pid)
    assert wait_gone(damaged.pid, 60)
    # The lease outlives a kernel for a restarter.
    await until(
        lambda: _list_kernels("gpus=2") == [str(whole.pid)], "only the other kernel is listed", 120, 0.5
    )
    assert (agent_folder(settled_runtime_dir) / "leases" / "stray.unreadable").exists()
    (agent_folder(settled_runtime_dir) / "leases" / "stray.unreadable").unlink()
    await client.stop(whole.id, grace_s=0)


async def test_without_kernels_nothing_goes_on(client: Client, settled_runtime_dir: Path) -> None:
    kernel = await client.start(tiny())
    await client.stop(kernel.id, grace_s=0)
    client.close()
    pids = [pid for kind in ("scheduler", "agent") for pid in daemon_pids(settled_runtime_dir, kind)]
    assert len(pids) == 2
    shutil.rmtree(settled_runtime_dir, ignore_errors=True)
    assert all(wait_gone(pid, SECONDS) for pid in pids)
    settled_runtime_dir.mkdir(mode=0o700, exist_ok=True)


def _list_kernels(options: str = "") -> list[str]:
    """Start a new program, and return the pids of the kernels that it lists."""
    code = f"import roost\nfor kernel in roost.connect('local', {options}).kernels().result(20): print(kernel.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=allow_s(60))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
