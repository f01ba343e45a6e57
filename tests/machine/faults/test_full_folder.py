"""Kernels print without end: their logs are cut as they grow, and starts, leases and other kernels go on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill
from kit.machine.small_disk import small_disk
from kit.machine.tiny_kernel import TINY_KERNEL, tiny
from roost.scheduler.client.client import Client

SIZE_BYTES = 256 << 20
PRINTS = TINY_KERNEL.replace(
    "signal.pause()",
    """
import os
while True:
    try:
        os.write(2, b"words without end\\\\n" * 1000)
    except OSError:  # the file system is full
        pass
""",
)


@pytest.fixture
def runtime_dir(runtime_dir: Path) -> Iterator[Path]:
    with small_disk(runtime_dir, SIZE_BYTES):
        yield runtime_dir


@pytest.mark.long  # beside other tests, the folder may be full before its logs are cut
async def test_starts_go_on_beside_kernels_that_print(
    roost_by_default: None, settled_runtime_dir: Path, client: Client
) -> None:
    printing = (sys.executable, "-S", "-c", PRINTS, "{connection_file}")
    for number in range(2):
        await client.start(tiny(f"prints-{number}", argv=printing))
    await asyncio.sleep(1)  # the first cut is after half a second
    for number in range(10):
        kernel = await client.start(tiny())
        assert os.statvfs(settled_runtime_dir).f_bavail, "the folder is full"
        if number % 3:
            await client.stop(kernel.id, grace_s=0)
    notebook = Notebook()
    await notebook.open()
    assert await notebook.value("6 * 7") == "42"
    await notebook.restart()
    for pid in (*daemon_pids(settled_runtime_dir, "scheduler"), *daemon_pids(settled_runtime_dir, "agent")):
        kill(pid)  # the next ones find all that was written, in a folder that is full by then
    assert await notebook.value("6 * 7") == "42"
    kernels = [kernel.id for kernel in await client.kernels()]
    assert len(kernels) == 6  # the notebook has a service of its own
    assert "words without end" in await client.logs("prints-0")
    await notebook.close()
    for kernel_id in kernels:
        await client.stop(kernel_id, grace_s=0)
