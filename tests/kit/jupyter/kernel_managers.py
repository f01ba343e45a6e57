"""Kernel managers with roost's provisioner, and the starts that the fake service has received."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager, KernelManager

from kit.fakes.service import FakeService
from kit.jupyter.kernelspecs import kernelspecs
from roost.placement.model import Request
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.messages import Connection, StartKernel
from roost.testing.deadlines import allow_s


def manager(folder: Path, kind: type[KernelManager] = AsyncKernelManager, **spec: Any) -> Any:
    specs = kernelspecs(folder, **spec)
    return kind(
        kernel_name="roosted", kernel_spec_manager=specs, connection_file=str(folder / "connection.json")
    )


def a_start(kernel_id: str, launch_id: str) -> StartKernel:
    return StartKernel(
        kernel_id=kernel_id, launch_id=launch_id, request=Request(), owner=this_owner(), argv=("x",), env={},
        cwd="/", connection=Connection(),
    )  # fmt: skip


def the_start(service: FakeService) -> StartKernel:
    start = service.called("start")[-1]
    assert isinstance(start, StartKernel)
    return start


async def ended(km: Any) -> int:
    return int(await asyncio.wait_for(km.provisioner.wait(), allow_s(60)))
