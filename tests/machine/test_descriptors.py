"""The open files of kernels and of roost's processes, read from /proc."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

from kit.machine.daemons import daemon_pids
from kit.machine.descriptors import list_descriptors, list_inheritable, private_files
from roost.testing.deadlines import allow_s, until

REPLY_S = 60.0
START_SERVICE = """
import os, sys
from roost.scheduler.client.client import connect
reader, writer = os.pipe()
for each in (reader, writer):
    os.set_inheritable(each, True)
connect("local").up().result(60)
print(os.readlink(f"/proc/self/fd/{writer}"))
"""


def children(pid: int) -> list[int]:
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *children(child)]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows descriptors on Linux only")
@pytest.mark.backends("local")
async def test_no_process_has_files_of_another_one(
    specs_of: Callable[..., object], backend_runtime_dir: Path
) -> None:
    """A kernel has its own sockets and pipes alone, and nothing that a program started by a cell would inherit."""
    managers: list[Any] = []
    ways: dict[int, str] = {}

    async def start_one(*, fork: bool = True) -> None:
        specs = specs_of(config={"fork": fork})
        km: Any = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=specs)
        managers.append(km)
        await km.start_kernel()
        client = km.client()
        client.start_channels()
        await client.wait_for_ready(timeout=allow_s(REPLY_S))
        client.stop_channels()
        kernel = km.provisioner.kernel
        ways[kernel.pid] = "standby" if "standby" in kernel.timing_ms else kernel.how

    try:
        await start_one(fork=False)
        for _ in range(10):  # of two starts at once, the second one often finds no standby
            await asyncio.gather(start_one(), start_one())
            if set(ways.values()) == {"exec", "forked", "standby"}:
                break
            await asyncio.sleep(1)
        assert set(ways.values()) == {"exec", "forked", "standby"}
        (agent,) = daemon_pids(backend_runtime_dir, "agent")
        (service,) = daemon_pids(backend_runtime_dir, "scheduler")
        own = {service: "service", agent: "agent"}
        inheritable: dict[str, list[int]] = {}
        shared: dict[str, list[str]] = {}

        def are_separate() -> bool:  # a spare that was just forked has the sockets of its zygote for a moment
            nonlocal inheritable, shared
            with suppress(FileNotFoundError, ProcessLookupError):  # a process between zygote and spare
                everyone = own | dict.fromkeys(zygotes(agent), "zygote or spare") | ways
                inheritable = {f"{how} {pid}": sorted(list_inheritable(pid)) for pid, how in everyone.items()}
                shared = find_shared(everyone)
                return not shared and set(map(tuple, inheritable.values())) == {(0, 1, 2)}
            return False

        await until(are_separate, lambda: f"inheritable: {inheritable}, shared: {shared}")
    finally:
        for km in managers:
            await km.shutdown_kernel(now=True)


def find_shared(everyone: dict[int, str]) -> dict[str, list[str]]:
    """Return the private files that several of these processes have open, each with what these processes are."""
    owners: dict[str, set[int]] = {}
    for pid in everyone:
        for name in private_files(pid):
            owners.setdefault(name, set()).add(pid)
    return {name: [everyone[pid] for pid in pids] for name, pids in owners.items() if len(pids) > 1}


def zygotes(agent: int) -> list[int]:
    return [pid for pid in children(agent) if b"zygote/main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_files_that_an_application_leaks_reach_no_process_of_roost(settled_runtime_dir: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-c", START_SERVICE],
        capture_output=True,
        text=True,
        timeout=allow_s(REPLY_S),
        check=True,
    )
    pipe = program.stdout.strip()
    assert pipe.startswith("pipe:")
    pids = [*daemon_pids(settled_runtime_dir, "scheduler"), *daemon_pids(settled_runtime_dir, "agent")]
    assert len(pids) == 2
    for pid in [*pids, *children(pids[1])]:
        with suppress(FileNotFoundError, ProcessLookupError):  # a process between zygote and spare
            assert pipe not in list_descriptors(pid).values()
