"""The promises of every backend (`backends/base.py`), tested on real clusters. Add a backend to `kind` and `opener`.

Each cluster has a node with at least 2 CPUs and exactly 2 T4, all free. A test leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from backend_contexts import backend_context
from dask_nodes import tls_files

from roost.launchers.daemon import daemon
from roost.launchers.protocol.messages import Owner
from roost.placement import Placement, Request, Snapshot, get_policy
from roost.scheduler.backends.base import Backend, BackendEvent, Lease
from roost.scheduler.backends.dask import backend as dask
from roost.scheduler.backends.dask.settings import RoostDaskBackend
from roost.scheduler.backends.local.backend import LocalBackend
from roost.scheduler.backends.local.settings import RoostLocalBackend
from roost.scheduler.backends.ray import backend as ray
from roost.scheduler.backends.ray import join
from roost.scheduler.backends.ray.settings import RoostRayBackend
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.errors import LeaseConflict

REFUSED_S = 5.0
"""At most this long a refusal may take. An idle machine needs less than a second; a busy one shares its cores."""
OWNER = Owner(user="ada", application="test", host="here", pid=1, process_started_at=1.0, can_adopt=True)
Opener = Callable[[], AbstractAsyncContextManager[tuple[Backend, Agents]]]
T4 = Callable[..., Request]


@asynccontextmanager
async def opened(make: Callable[[Agents], Backend]) -> AsyncIterator[tuple[Backend, Agents]]:
    agents = Agents()
    backend = make(agents)
    await backend.open()
    try:
        yield backend, agents
    finally:
        await backend.close()
        await agents.close()


def end_local(runtime_dir: Path) -> None:
    announced = daemon.ensure(runtime_dir / "agent", ["false"], deadline_s=5)
    os.kill(announced["pid"], signal.SIGTERM)


@pytest.fixture(params=["local", "ray", "dask", "dask_tls"], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of the backend and cluster."""
    return str(request.param)


@pytest.fixture(scope="module")
def opener(kind: str, request: pytest.FixtureRequest, module_runtime_dir: Path) -> Iterator[Opener]:
    """Return a function that opens the backend. A second call opens it as another process would."""
    if kind == "local":
        local = RoostLocalBackend(cpus=2, memory=1 << 30, gpus=2, gpu_model="T4")
        yield partial(opened, lambda agents: LocalBackend(local, backend_context(agents, module_runtime_dir)))
        end_local(module_runtime_dir)
        return
    cluster = request.getfixturevalue(f"{kind}_cluster")
    folder = module_runtime_dir / f"backend_{kind}"
    folder.mkdir(mode=0o700)
    if kind == "ray":
        at_ray = RoostRayBackend(address=cluster.address)
        yield partial(opened, lambda agents: ray.create(at_ray, backend_context(agents, folder)))
        join.leave()
        return
    at_dask = RoostDaskBackend(address=cluster.address, **tls_files(cluster))
    yield partial(opened, lambda agents: dask.create(at_dask, backend_context(agents, folder)))


@pytest.fixture
def t4(kind: str) -> T4:
    """Return a function that makes a request for T4s. Dask knows no models: there T4 is a declared resource."""

    def ask(gpus: float, **more: Any) -> Request:
        if kind in ("local", "ray"):
            return Request(gpus=gpus, gpu_models=("T4",), **more)
        return Request(gpus=gpus, resources={"T4": gpus}, **more)

    return ask


def place(snapshot: Snapshot, request: Request) -> Placement:
    decision = get_policy("balanced").place(request, snapshot)
    assert decision.placement is not None, decision.reason
    return decision.placement


async def take(
    backend: Backend, kernel_id: str, request: Request, placement: Placement | None = None
) -> Lease:
    if placement is None:  # a freed slice shows late
        await _until(
            backend, lambda snapshot: get_policy("balanced").place(request, snapshot).placement is not None
        )
        placement = place(await backend.snapshot(), request)
    return await backend.claim(
        Lease(
            id=f"roost:{kernel_id}:1",
            kernel_id=kernel_id,
            owner=OWNER,
            request=request,
            node_id=placement.node_id,
            device_ids=placement.device_ids,
        )
    )


async def timed_take(
    backend: Backend, kernel_id: str, request: Request, placement: Placement
) -> tuple[Lease | LeaseConflict, float]:
    """Return the lease or the refusal, and after how many seconds it came."""
    began = time.monotonic()
    try:
        return await take(backend, kernel_id, request, placement), time.monotonic() - began
    except LeaseConflict as refusal:
        return refusal, time.monotonic() - began


async def test_a_lease_shows_at_once_and_its_release_undoes_it(opener: Opener, t4: T4) -> None:
    async with opener() as (backend, _):
        before = await backend.snapshot()
        request = t4(0.5, cpus=1, memory_bytes=1 << 20, owner="ada")
        lease = await take(backend, "k", request)
        assert (lease.kernel_id, lease.owner, lease.request) == ("k", OWNER, request)
        node = (await backend.snapshot()).node(lease.node_id)
        was = before.node(lease.node_id)
        assert node.cpus_promised == was.cpus_promised + 1
        assert node.memory_promised_bytes == was.memory_promised_bytes + (1 << 20)
        assert [d.promised for d in node.devices if d.id in lease.device_ids] == [0.5]
        await backend.release(lease)
        await _until(
            backend, lambda snapshot: snapshot.node(lease.node_id).cpus_promised == was.cpus_promised
        )
        assert [d.promised for d in (await backend.snapshot()).node(lease.node_id).devices] == [0.0, 0.0]


async def test_leasing_and_releasing_may_be_repeated(opener: Opener, t4: T4) -> None:
    async with opener() as (backend, _):
        placement = place(await backend.snapshot(), t4(1))
        first = await take(backend, "k", t4(1), placement)
        assert await take(backend, "k", t4(1), placement) == first
        assert [lease.id for lease in (await backend.leases()).leases] == [first.id]
        await backend.release(first)
        await backend.release(first)
        await backend.release(replace(first, id="roost:never:1"))
        assert (await backend.leases()).leases == ()


async def test_a_slice_is_leased_once_and_refusals_are_quick(
    opener: Opener, t4: T4, record_property: Callable[[str, object], None]
) -> None:
    async with opener() as (backend, _):
        share = t4(0.6)
        placement = place(await backend.snapshot(), t4(1))
        await backend.release(await take(backend, "warm", share, placement))  # only the first lease is slow
        await _until(backend, lambda snapshot: snapshot.node(placement.node_id).gpus_promised == 0)
        outcomes = await asyncio.wait_for(
            asyncio.gather(*(timed_take(backend, f"k{i}", share, placement) for i in range(4))), 30
        )
        held = [outcome for outcome, _ in outcomes if isinstance(outcome, Lease)]
        slowest_s = max(took_s for outcome, took_s in outcomes if isinstance(outcome, LeaseConflict))
        record_property("slowest_refusal_s", slowest_s)
        assert slowest_s < REFUSED_S
        assert len(held) == 2
        assert get_policy("balanced").place(share, await backend.snapshot()).placement is None
        for lease in held:
            await backend.release(lease)


async def test_leases_are_found_again_by_another_process(opener: Opener, t4: T4) -> None:
    async with opener() as (backend, _):
        lease = await take(backend, "k", t4(1, cpus=1, owner="ada"))
    async with opener() as (backend, _):
        assert (await backend.leases()).leases == (lease,)
        await backend.release(lease)
        assert (await backend.leases()).leases == ()


async def test_a_lease_can_be_held_for_another_owner(opener: Opener) -> None:
    other = replace(OWNER, application="next")
    async with opener() as (backend, _):
        lease = await take(backend, "k", Request(cpus=1))
        adopted = await backend.transfer(lease, other)
        assert adopted == await backend.transfer(adopted, other) == replace(lease, owner=other)
        await backend.transfer(replace(lease, id="roost:never:1"), other)
    async with opener() as (backend, _):
        assert (await backend.leases()).leases == (adopted,)
        await backend.release(adopted)


async def test_the_lease_of_another_scheduler_shows_after_an_event(opener: Opener, t4: T4) -> None:
    async with opener() as (mine, _), opener() as (theirs, _):
        placement = place(await mine.snapshot(), t4(1))
        events = mine.events()
        lease = await take(theirs, "theirs", t4(1), placement)
        assert (await asyncio.wait_for(anext(events), 5)).kind == "nodes"
        await _until(mine, lambda snapshot: snapshot.node(lease.node_id).gpus_promised == 1)
        await theirs.release(lease)
        await _until(mine, lambda snapshot: snapshot.node(lease.node_id).gpus_promised == 0)


async def test_an_agent_answers_for_each_lease(opener: Opener) -> None:
    async with opener() as (backend, agents):
        lease = await take(backend, "k", Request(cpus=1))
        client = await agents.client(await backend.agent(lease))
        assert [held.id for held in (await client.holdings()).leases] == [lease.id]
        assert client is await agents.client(await backend.agent(lease))
        await backend.release(lease)


async def test_watching_ends_with_the_backend(opener: Opener) -> None:
    async with opener() as (backend, _):
        watching = asyncio.ensure_future(_all(backend.events()))
    assert {event.kind for event in await asyncio.wait_for(watching, 5)} <= {"nodes"}
    await backend.close()


async def _all(events: AsyncIterator[BackendEvent]) -> list[BackendEvent]:
    return [event async for event in events]


async def _until(backend: Backend, condition: Callable[[Snapshot], bool]) -> None:
    """Wait until events have made the condition true."""
    events = backend.events()
    while not condition(await backend.snapshot()):
        await asyncio.wait_for(anext(events), 5)
