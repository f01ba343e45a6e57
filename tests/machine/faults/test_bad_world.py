"""A full disk, files of a killed service, a clock that jumps: roost reports a clear error and loses no kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import roost
from kit.machine.daemons import agent_folder, daemon_pids, kill, settle
from kit.machine.small_disk import small_disk as mounted
from kit.machine.tiny_kernel import tiny
from roost.launchers.daemon.process import is_running, start_time
from roost.scheduler.client.client import Client
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Kernel, StartKernel
from roost.testing.deadlines import allow_s, until


@pytest.fixture
def small_disk(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Mount a small disk at the runtime folder. The machine's book is on another one, as /run is."""
    monkeypatch.setenv("ROOST_MACHINE_DIR", str(tmp_path / "machine"))
    with mounted(runtime_dir, 2 << 20):
        yield runtime_dir


async def test_a_full_disk(small_disk: Path) -> None:
    client = roost.connect("local", gpus=2)
    before = await client.start(tiny(gpus=0.5))
    filler = small_disk / "filler"
    _fill(filler)
    with pytest.raises(RoostError, match="space"):
        await client.start(tiny(gpus=0.5))
    assert {kernel.id for kernel in await client.kernels()} == {before.id}
    (node,) = await client.nodes()
    assert sum(device["promised"] for device in node["devices"]) == 0.5, (
        "the lease of a failed start was kept"
    )
    assert is_running(before.pid, start_time(before.pid))
    filler.unlink()
    after = await client.start(tiny(gpus=0.5))
    for kernel in (before, after):
        await client.stop(kernel.id, grace_s=0)
    client.close()
    await asyncio.to_thread(settle, small_disk)


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


async def test_a_stale_socket_and_broken_files_of_a_killed_service(
    client: Client, settled_runtime_dir: Path
) -> None:
    await client.kernels()
    (service,) = daemon_pids(settled_runtime_dir, "scheduler")
    (folder,) = settled_runtime_dir.glob("scheduler*")
    client.close()
    kill(service)
    assert (folder / "socket").exists(), "this test is about a stale socket"
    assert await asyncio.wait_for(client.kernels(), allow_s(60)) == []
    client.close()
    (service,) = daemon_pids(settled_runtime_dir, "scheduler")
    kill(service)
    (folder / "socket").unlink()
    (folder / "socket").write_text("no socket at all")
    (folder / "ready.json").write_text('{"pid": 1')
    assert await client.kernels() == []


CLOCK = """
import os, time
_file, _time = os.environ.get("ROOST_TEST_CLOCK"), time.time
if _file:
    def stepped():
        try:
            with open(_file) as file:
                return _time() + float(file.read() or 0)
        except OSError:
            return _time()
    time.time = stepped
"""


async def test_a_clock_that_jumps(
    settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    step = tmp_path / "step"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("ROOST_TEST_CLOCK", str(step))
    client = roost.connect("local", gpus=2)
    kernel = await client.start(tiny(gpus=2))
    asked = tiny(gpus=1)
    queued = asyncio.ensure_future(_start(client, asked))
    await _until_queued(client, asked.kernel_id)
    step.write_text("90000")  # a day and an hour on
    passing = await client.start(tiny(cpus=0.1))
    await client.stop(passing.id, grace_s=0)  # the queue is checked again
    assert (await client.kernel(asked.kernel_id)).state == "queued", "its deadline followed the clock"
    assert not queued.done()
    step.write_text("-90000")
    (service,) = daemon_pids(settled_runtime_dir, "scheduler")
    (agent,) = daemon_pids(settled_runtime_dir, "agent")
    kill(service)
    kill(agent)
    assert {found.id: found.pid for found in await client.kernels() if found.pid} == {kernel.id: kernel.pid}
    assert is_running(kernel.pid, start_time(kernel.pid))
    await client.stop(kernel.id, grace_s=0)
    other = await asyncio.wait_for(queued, allow_s(60))
    await client.stop(other.id, grace_s=0)
    client.close()


async def _start(client: Client, asked: StartKernel) -> Kernel:
    return await client.start(asked)


async def _until_queued(client: Client, kernel_id: str) -> None:
    async def is_queued() -> bool:
        return any(kernel.id == kernel_id and kernel.state == "queued" for kernel in await client.kernels())

    await until(is_queued, "the start is queued", 60, 0.02)


async def test_the_agent_of_this_machine_has_no_port(client: Client, settled_runtime_dir: Path) -> None:
    kernel = await client.start(tiny())
    (agent,) = daemon_pids(settled_runtime_dir, "agent")
    assert "LISTEN" not in [each.status for each in psutil.Process(agent).net_connections()]
    assert (agent_folder(settled_runtime_dir) / "socket").stat().st_mode & 0o777 == 0o600
    await client.stop(kernel.id, grace_s=0)
