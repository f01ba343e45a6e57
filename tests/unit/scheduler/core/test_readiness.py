"""Warm processes where the next kernel will go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeWorld, fake_world
from roost.placement import Snapshot
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import readiness


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_LATER_S", 0.01)
    monkeypatch.setattr(readiness, "_JOINED_S", 0.01)


def warmed(w: FakeWorld) -> set[str]:
    return {fake.name for fake in w.fakes if "warm" in fake.calls}


async def until_warmed(w: FakeWorld, *nodes: str) -> None:
    for fake in w.fakes:
        if fake.name in nodes:
            await fake.called("warm")
    await asyncio.sleep(0.1)
    assert warmed(w) == set(nodes)


@pytest.mark.parametrize("most", [0, 1, 2])
async def test_the_next_places_are_ready_after_a_start(tmp_path: Path, most: int) -> None:
    """The policy would put the next kernel on another node, and then on a third one."""
    async with fake_world(tmp_path, nodes=("a", "b", "c"), gpus=1, settings=Settings(ready_places=most)) as w:
        kernel = await w.start("k", gpus=1)
        others = sorted({"a", "b", "c"} - {kernel.node_id})
        await until_warmed(w, *others[:most])
        second = await w.start("l", gpus=1)
        assert most == 0 or second.node_id in others[:most]


async def test_no_place_is_ready_on_a_node_that_ends_without_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path, nodes=("a", "b", "c"), cpus=8) as w:
        monkeypatch.setattr(w.backend, "may_end", lambda node_id: True)
        kernel = await w.start("k", cpus=1)
        await until_warmed(w)
        await w.scheduler.warm(("python",), {})
        await until_warmed(w, kernel.node_id)


async def test_a_burst_is_slowed_down_by_nothing_and_prepares_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next kernel's place is a node that no start has used."""
    monkeypatch.setattr(readiness, "_LATER_S", 3600.0)
    async with fake_world(tmp_path, nodes=("a", "b", "c", "d", "e"), gpus=4) as w:
        await asyncio.gather(*(w.start(f"k{number}", gpus=1) for number in range(4)))
        assert warmed(w) == set()
        assert ("ready", "ada") in w.scheduler._timers
        await w.scheduler._readiness._prepare("ada")
        assert sum(fake.calls.count("warm") for fake in w.fakes) == 1


async def test_a_node_whose_agent_fails_keeps_no_start_from_running(tmp_path: Path) -> None:
    async with fake_world(tmp_path, nodes=("a", "b"), gpus=1) as w:
        for fake in w.fakes:
            fake.fail("warm")
        first = await w.start("k", gpus=1)
        await asyncio.gather(*(fake.called("warm") for fake in w.fakes if fake.name != first.node_id))
        assert (await w.start("l", gpus=1)).state == "running"


@pytest.mark.parametrize("lately", [True, False])
async def test_a_node_that_joins_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lately: bool
) -> None:
    """The user's next kernel would go there. Nothing is prepared for a user who has started nothing lately."""
    async with fake_world(tmp_path, nodes=("a", "b"), gpus=1) as w:
        everything = w.backend.snapshot
        shown = ["a"]

        async def snapshot() -> Snapshot:
            whole = await everything()
            return Snapshot.of([whole.node(name) for name in shown])

        monkeypatch.setattr(w.backend, "snapshot", snapshot)
        if not lately:
            monkeypatch.setattr(readiness, "_FOR_S", 0.0)
        await w.start("k", gpus=1)
        await until_warmed(w)
        shown.append("b")
        w.scheduler.reconciler.on_nodes()
        await until_warmed(w, *(["b"] if lately else []))
        w.scheduler.reconciler.on_nodes()
        await asyncio.sleep(0.1)
        assert sum(fake.calls.count("warm") for fake in w.fakes) == int(lately), "once"
