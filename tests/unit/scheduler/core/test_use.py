"""The use of kernels: callers that share one answer of an agent, and callers for which it is asked again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeWorld, fake_world
from roost.launchers.protocol.messages import KernelUse
from roost.placement.model.json_codec import WireError
from roost.scheduler.core import use
from roost.scheduler.core.backend_access import BackendAccess
from roost.scheduler.errors import LaunchError


def set_memory(w: FakeWorld, memory_bytes: int) -> None:
    w.agent.use["k"] = KernelUse(kernel_id="k", memory_bytes=memory_bytes)


async def read_memory(w: FakeWorld) -> int:
    (kernel,) = await w.scheduler.with_use(w.scheduler.kernels())
    return -1 if kernel.use is None else kernel.use.memory_bytes


async def test_those_who_ask_within_a_short_time_share_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use, "_LEAST_S", 3_600.0)
    async with fake_world(tmp_path) as w:
        await w.start("k")
        set_memory(w, 1)
        assert await asyncio.gather(read_memory(w), read_memory(w)) == [1, 1]
        set_memory(w, 2)
        assert await read_memory(w) == 1
        assert w.agent.calls.count("stats") == 1


async def test_an_old_answer_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "_LEAST_S", 0.0)
    monkeypatch.setattr(use, "_MOST_BUSY", float("inf"))
    async with fake_world(tmp_path) as w:
        await w.start("k")
        for memory_bytes in (1, 2):
            set_memory(w, memory_bytes)
            assert await read_memory(w) == memory_bytes


async def test_the_more_an_agent_has_to_say_the_rarer_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use, "_LEAST_S", 0.0)
    monkeypatch.setattr(use, "_MOST_BUSY", 1e-9)
    async with fake_world(tmp_path) as w:
        await w.start("k")
        for memory_bytes in (1, 2):
            set_memory(w, memory_bytes)
            assert await read_memory(w) == 1


async def test_an_agent_that_did_not_answer_is_asked_again(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k")
        set_memory(w, 1)
        w.agent.fail("stats", "unknown_kernel")
        assert await read_memory(w) == -1
        w.agent.failures.clear()
        assert await read_memory(w) == 1


async def test_pages_have_the_kernels_by_their_ids(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        for kernel_id in ("b", "c", "a"):
            await w.start(kernel_id)
        assert [kernel.id for kernel in w.scheduler.list_kernels("", 2)] == ["a", "b"]
        assert [kernel.id for kernel in w.scheduler.list_kernels("b", 2)] == ["c"]
        assert w.scheduler.list_kernels("c", 2) == []


@pytest.mark.parametrize("problem", [WireError("KernelUse.cpu_s must be a number"), LaunchError("too large")])
async def test_an_answer_that_cannot_be_read_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k")

        async def fail(*_: object) -> None:
            raise problem

        set_memory(w, 1)
        with monkeypatch.context() as patch:
            patch.setattr(BackendAccess, "ask_agent", fail)
            assert await read_memory(w) == -1
        assert await read_memory(w) == 1


async def test_a_state_that_jupyter_does_not_define_is_none(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k")
        w.agent.use["k"] = KernelUse(kernel_id="k", execution_state="\x1b[31m" + "x" * 100_000)
        (kernel,) = await w.scheduler.with_use(w.scheduler.kernels())
        assert kernel.use == KernelUse(kernel_id="k")
