"""When a start asks the cluster for a new node, and how long it waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.scheduler import FakeWorld, scheduler_on
from roost.launchers.protocol.messages import Launch
from roost.placement import Node, NodeType
from roost.scheduler.backends.base import Lease
from roost.scheduler.core import lease_claim
from roost.scheduler.errors import LeaseConflict, NoNodeEver, NoNodeNow
from roost.testing import FakePodCluster

SMALL, BIG = Node(id="small", cpus=1, labels={"disk": "ssd"}), Node(id="big", cpus=8, labels={"type": "big"})


@asynccontextmanager
async def growing(
    folder: Path, *, limit: int = 2, after_s: float = 0.0, **growth: Any
) -> AsyncIterator[FakeWorld]:
    """Open a scheduler on a cluster with one small node, which can start big ones."""
    types = (NodeType(node=BIG, limit=limit),)
    pods = FakePodCluster(folder, [SMALL], adds_nodes=True, node_types=types)
    async with scheduler_on([], pods=pods) as w:
        w.backend.growth.after_s = after_s
        for name, value in growth.items():
            setattr(w.backend.growth, name, value)
        yield w
        for kernel in w.scheduler.kernels():
            await w.scheduler.stop(kernel.id, 0.0)
        assert not pods.agents


def waits_for(w: FakeWorld, kernel_id: str) -> str:
    return w.kernel(kernel_id).waits_for


async def test_a_request_that_no_node_could_hold_brings_a_node_at_once(tmp_path: Path) -> None:
    async with growing(tmp_path, after_s=1_000.0) as w:
        w.start("k", cpus=4)
        await w.told("placed", "k")
        await w.until(lambda: waits_for(w, "k") == "no node has room yet")


async def test_a_request_that_waits_for_a_full_node_brings_one_after_a_while(tmp_path: Path) -> None:
    async with growing(tmp_path, after_s=2.0) as w:
        w.start("first", cpus=1)
        await w.told("placed", "first")
        w.start("second", cpus=1)
        await w.told("queued", "second")
        assert "has room now for 1 CPU" in waits_for(w, "second")
        await w.told("placed", "second")


async def test_a_request_that_no_new_node_could_hold_waits_for_room(tmp_path: Path) -> None:
    async with growing(tmp_path, after_s=0.1) as w:
        labels = {"disk": "ssd"}
        w.backend._node_types = (NodeType(node=BIG),)
        await w.start("first", cpus=1, labels=labels)
        with pytest.raises(NoNodeNow, match=r"^waited 0\.5 s at position 1"):
            await w.start("second", cpus=1, labels=labels, launch_timeout_s=0.5)


async def test_no_claim_without_a_node_while_a_node_with_room_is_drained(tmp_path: Path) -> None:
    """The manager would grant it there."""
    async with growing(tmp_path, after_s=0.1) as w:
        await w.scheduler.drain("small", True)
        with pytest.raises(NoNodeNow, match=r"^waited 0\.5 s at position 1.*drain"):
            await w.start("k", cpus=1, launch_timeout_s=0.5)
        for on in (True, False, False):
            await w.scheduler.drain("small", on)
        assert [event.detail for event in w.events if "small" in event.detail and event.kind == "nodes"] == [
            "node small drains",
            "node small is open again",
        ]


async def test_a_request_that_fits_a_type_at_its_limit_waits_for_room(tmp_path: Path) -> None:
    async with growing(tmp_path, limit=0) as w:
        w.start("k", cpus=4)
        await w.told("queued", "k")
        assert "the cluster may start no node of type big" in waits_for(w, "k")
        assert w.count("placed") == 0


async def test_a_request_for_which_the_cluster_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    async with growing(tmp_path, why_not=lambda request: "it cannot be asked") as w:
        with pytest.raises(NoNodeEver, match=r"could hold 4 CPUs.* it cannot be asked\.$"):
            await w.start("k", cpus=4)
        w.start("first", cpus=1)
        await w.told("placed", "first")
        w.start("second", cpus=1)  # which may get the place of the first one
        await w.told("queued", "second")


async def test_a_start_that_may_not_ask_for_a_node_takes_room_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with growing(tmp_path) as w:
        await w.start("first", cpus=1)
        claim = w.backend.claim

        async def refuse(lease: Lease, launch: Launch | None = None) -> Lease:
            if not lease.node_id:
                raise LeaseConflict("ada may have 0 new nodes")
            return await claim(lease, launch)

        monkeypatch.setattr(w.backend, "claim", refuse)
        monkeypatch.setattr(lease_claim, "_SKIP_S", (1_000.0, 1_000.0))
        starting = w.start("second", cpus=1)
        await w.told("conflict", "second")
        await w.until(lambda: waits_for(w, "second") == "ada may have 0 new nodes")
        await w.scheduler.stop("first", 0.0)
        assert (await starting).node_id == "small"


@pytest.mark.parametrize(("extended_s", "waited"), [(0.0, "0.2 s"), (0.5, "0.5 s")])
async def test_the_start_of_a_node_has_a_time_of_its_own(
    tmp_path: Path, extended_s: float, waited: str
) -> None:
    async with growing(tmp_path, start_timeout_s=extended_s) as w:
        with pytest.raises(NoNodeNow, match=f"^waited {waited}: no node has room yet"):
            await asyncio.wait_for(w.start("k", cpus=4, launch_timeout_s=0.2), 60)
