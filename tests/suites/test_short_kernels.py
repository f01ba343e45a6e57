"""Kernels that take a whole node for a moment, one after the other: each end makes room for the next start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kit.machine.tiny_kernel import tiny
from roost.placement.model import NODE_LABEL
from roost.scheduler.client.client import connect

pytestmark = pytest.mark.backends(
    "local", "ray", "dask", "ssh", why="the others take seconds to start each kernel"
)
ROUNDS, AT_ONCE = 3, 3


async def test_each_end_makes_room_for_the_next_start(backend: str, backend_runtime_dir: Path) -> None:
    """A manager that is read twice a second never shows such a kernel, so nothing seems to change when it ends."""
    client = connect(backend)
    node = max(await client.nodes(), key=lambda node: float(node["cpus"]))

    async def run_one() -> None:
        start = tiny(cpus=node["cpus"], labels={NODE_LABEL: node["id"]}, launch_timeout_s=60.0)
        kernel = await client.start(start)
        await client.stop(kernel.id, grace_s=0)

    for _ in range(ROUNDS):
        await asyncio.gather(*(run_one() for _ in range(AT_ONCE)))
