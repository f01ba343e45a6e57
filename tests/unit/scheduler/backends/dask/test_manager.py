"""How `DaskManager` waits for the first agents, without Dask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from roost.scheduler.backends.dask import manager
from roost.scheduler.backends.dask.manager import DaskManager
from roost.scheduler.backends.dask.nodes import DaskNode
from roost.scheduler.backends.dask.settings import RoostDaskBackend
from roost.scheduler.backends.key_pair import KeyPair
from roost.testing.deadlines import allow_s

WITH_GPU = DaskNode(
    id="10.0.0.1",
    threads=4.0,
    memory_bytes=1 << 30,
    resources={"GPU": 1.0},
    free={"GPU": 1.0},
    devices=("0",),
    shares={},
    cpus_promised=0.0,
    memory_promised_bytes=0,
    leases=frozenset(),
)
WITHOUT = replace(WITH_GPU, id="10.0.0.2", resources={}, free={}, devices=())


class FakeDask(DaskManager):
    """A manager that reads each of these sets of nodes in turn, then the last one again."""

    def __init__(self, *readings: Iterable[DaskNode]) -> None:
        super().__init__(RoostDaskBackend(), KeyPair("public", "secret"))
        self._readings = list(readings)
        self.looks = 0

    async def _join(self, address: str) -> str:
        return "tcp://10.0.0.9:8786"

    async def _see(self, wait_s: float) -> Iterable[DaskNode]:
        if wait_s:
            self.looks += 1
            return ()
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]


async def joined(*readings: Iterable[DaskNode]) -> FakeDask:
    dask = FakeDask(*readings)
    await dask.membership.join("")
    return dask


def started(**answer: Any) -> DaskNode:
    return replace(WITH_GPU, agent={"report": "1", **answer})


async def test_a_machine_with_gpus_is_awaited_until_its_agent_has_looked_at_them() -> None:
    dask = await joined(
        [WITH_GPU, WITHOUT], [WITH_GPU, WITHOUT], [started(endpoint="tcp://10.0.0.1:1"), WITHOUT]
    )
    await dask.wait_until_described()
    assert dask.looks == 2
    assert dask.membership.nodes["10.0.0.1"].agent


async def test_an_agent_that_cannot_start_is_not_awaited() -> None:
    dask = await joined([started(problem="no ipykernel")], [])
    await dask.wait_until_described()
    assert dask.looks == 0


async def test_the_wait_for_agents_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "_FIRST_AGENTS_S", 0.05)
    dask = await joined([WITH_GPU], [WITH_GPU])
    began = time.monotonic()
    await asyncio.wait_for(dask.wait_until_described(), allow_s(5))
    assert time.monotonic() - began >= 0.05
