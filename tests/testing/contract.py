"""The promises of every backend (`roost.scheduler.backends.base`), as tests that other packages can run.

The tests need pytest and pytest-asyncio. Each test leaves nothing behind on the cluster.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from roost.launchers.protocol.messages import PORT_NAMES, Connection, Launch, Lease, Owner
from roost.placement import Placement, Request, Snapshot, get_policy
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend, BackendEvent
from roost.scheduler.errors import LeaseConflict, RoostError

OWNER = Owner(user="ada", application="test", host="here", pid=1, process_started_at=1.0, can_adopt=True)
MEMORY_BYTES = 256 << 20
"""The memory of a request. It is enough for an agent in a container."""
Opener = Callable[[], AbstractAsyncContextManager[tuple[Backend, Agents]]]
"""A function that opens the backend. A second call opens the backend as another process would."""
_CLOSE_S = 30.0
_KERNEL = f"""
import json, socket, sys, time
connection = json.load(open(sys.argv[1]))
sockets = [socket.create_server((connection["ip"], connection[name])) for name in {PORT_NAMES}]
time.sleep(3600)
"""
"""A program that listens on the ports of a kernel and does nothing else."""
Scarce = Callable[..., Request]
"""A function that returns a request for an amount of the scarce resource. Keywords are other fields of `Request`."""


@asynccontextmanager
async def open_backend(create: Callable[[Agents], Backend]) -> AsyncIterator[tuple[Backend, Agents]]:
    """Create a backend, open it, and close it at the end."""
    agents = Agents()
    backend = create(agents)
    await backend.open()
    try:
        yield backend, agents
    finally:
        await asyncio.wait_for(backend.close(), _CLOSE_S)  # a stream of events that does not end is a defect
        await agents.close()


@pytest.mark.asyncio
class BackendContract:
    """A mixin of tests for one backend. Its cluster has a node with 2 free units of a scarce resource, and 2 CPUs.

    Override `opener`. Override `scarce` if the scarce resource is not whole GPUs, and `kernel_python` if a pod has
    another Python.
    """

    refused_s = 5.0
    """How long a refusal may take."""
    held_s = 60.0
    """How long a lease may be pending, and how long a kernel may outlive its lease."""

    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError(
            "override the fixture `opener`: it returns a function that opens the backend"
        )

    @pytest.fixture
    def scarce(self) -> Scarce:
        return lambda amount, **fields: Request(gpus=amount, **fields)

    @pytest.fixture
    def kernel_python(self) -> str:
        """Return the command of the Python that runs the kernel. A pod may need another Python than this process."""
        return sys.executable

    async def test_a_lease_shows_in_the_snapshot_and_its_release_undoes_it(
        self, opener: Opener, scarce: Scarce
    ) -> None:
        async with opener() as (backend, _):
            before = await backend.snapshot()
            request = scarce(1, cpus=1, memory_bytes=MEMORY_BYTES, owner="ada")
            lease = await self.take(backend, "k", request)
            assert (lease.kernel_id, lease.owner, lease.request, lease.state) == ("k", OWNER, request, "held")
            node, was = (await backend.snapshot()).node(lease.node_id), before.node(lease.node_id)
            assert node.cpus_promised == was.cpus_promised + 1
            assert node.memory_promised_bytes == was.memory_promised_bytes + MEMORY_BYTES
            assert [d.promised for d in node.devices if d.id in lease.device_ids] == [1.0] * request.gpu_count
            await backend.release(lease)
            await self.until(backend, lambda s: s.node(lease.node_id).cpus_promised == was.cpus_promised)
            after = (await backend.snapshot()).node(lease.node_id)
            assert [d.promised for d in after.devices] == [d.promised for d in was.devices]

    async def test_claims_and_releases_may_be_repeated(self, opener: Opener, scarce: Scarce) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(1))
            first = await self.take(backend, "k", scarce(1), placement)
            assert await self.take(backend, "k", scarce(1), placement) == first
            assert [lease.id for lease in (await backend.leases()).leases] == [first.id]
            await backend.release(first)
            await backend.release(first)
            await backend.release(replace(first, id="roost:never:1"))
            assert (await backend.leases()).leases == ()

    async def test_a_slice_is_granted_once_and_refusals_are_quick(
        self, opener: Opener, scarce: Scarce, record_property: Callable[[str, object], None]
    ) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(2))
            warm = await self.take(backend, "warm", scarce(1), placement)  # only the first lease is slow
            await backend.release(warm)
            await self.until(backend, lambda s: _fits(s, scarce(2)))
            outcomes = await asyncio.gather(
                *(self.timed_claim(backend, f"k{number}", scarce(1), placement) for number in range(4))
            )
            granted = [outcome for outcome, _ in outcomes if isinstance(outcome, Lease)]
            slowest_s = max(took_s for outcome, took_s in outcomes if isinstance(outcome, LeaseConflict))
            record_property("slowest_refusal_s", slowest_s)
            assert slowest_s < self.refused_s
            assert len(granted) == 2
            assert not _fits(await backend.snapshot(), scarce(1))
            for lease in granted:
                await backend.release(lease)

    async def test_leases_are_found_again_by_another_process(self, opener: Opener, scarce: Scarce) -> None:
        async with opener() as (backend, _):
            lease = await self.take(backend, "k", scarce(1, cpus=1, owner="ada"))
        async with opener() as (backend, _):
            found = [await self.held(backend, found) for found in (await backend.leases()).leases]
            assert found == [lease]
            await backend.release(lease)
            assert (await backend.leases()).leases == ()

    async def test_a_pending_lease_has_a_reason_and_can_be_cancelled(
        self, opener: Opener, scarce: Scarce
    ) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(1))
            lease = await self.claim(backend, "k", scarce(1), placement)
            assert lease.state in ("pending", "held")
            assert lease.state == "held" or lease.reason
            await backend.release(lease)
            assert (await backend.leases()).leases == ()
            await self.until(backend, lambda s: _fits(s, scarce(2)))

    async def test_a_pending_lease_goes_on_in_another_process(self, opener: Opener, scarce: Scarce) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(1))
            claimed = await self.claim(backend, "k", scarce(1), placement)
        async with opener() as (backend, _):
            (found,) = (await backend.leases()).leases
            assert (found.id, found.request, found.owner) == (claimed.id, claimed.request, OWNER)
            assert (await self.held(backend, found)).state == "held"
            await backend.release(found)

    async def test_a_lease_can_be_transferred_to_another_owner(self, opener: Opener) -> None:
        other = replace(OWNER, application="next")
        async with opener() as (backend, _):
            lease = await self.take(backend, "k", Request(cpus=1))
            transferred = await backend.transfer(lease, other)
            assert transferred == await backend.transfer(transferred, other) == replace(lease, owner=other)
            await backend.transfer(replace(lease, id="roost:never:1"), other)
        async with opener() as (backend, _):
            (found,) = (await backend.leases()).leases
            assert await self.held(backend, found) == transferred
            await backend.release(transferred)

    async def test_the_lease_of_another_scheduler_shows_after_an_event(
        self, opener: Opener, scarce: Scarce
    ) -> None:
        async with opener() as (mine, _), opener() as (theirs, _):
            placement = await self.find_room(mine, scarce(2))
            lease = await self.take(theirs, "theirs", scarce(2), placement)
            await self.until(mine, lambda s: not _fits(s, scarce(1)))
            await theirs.release(lease)
            await self.until(mine, lambda s: _fits(s, scarce(1)))

    async def test_each_lease_has_an_agent_that_knows_it(self, opener: Opener) -> None:
        """Two leases are tested. They may share an agent, if they are on the same node."""
        async with opener() as (backend, agents):
            leases = [await self.take(backend, name, Request(cpus=1)) for name in ("one", "two")]
            for lease in leases:
                client = await agents.client(await backend.agent(lease))
                assert lease.id in [held.id for held in (await client.holdings()).leases]
                assert client is await agents.client(await backend.agent(lease))
            for lease in leases:
                await backend.release(lease)

    async def test_a_kernel_ends_with_its_lease(self, opener: Opener, kernel_python: str) -> None:
        async with opener() as (backend, agents):
            lease = await self.take(backend, "k", Request(cpus=1))
            client = await agents.client(await backend.agent(lease))
            launch = Launch(
                launch_id="1",
                lease_id=lease.id,
                kernel_id="k",
                argv=(kernel_python, "-c", _KERNEL, "{connection_file}"),
                env={"PATH": os.environ["PATH"]},
                cwd="/",
                connection=Connection(key="secret"),
            )
            connection = (await client.launch(launch)).connection
            assert connection is not None
            address = connection.ip, connection.shell_port
            assert await _is_open(*address)
            await backend.release(lease)
            deadline = time.monotonic() + self.held_s
            while await _is_open(*address):
                assert time.monotonic() < deadline, "the kernel of a released lease still runs"
                await asyncio.sleep(0.1)  # nothing reports the end of a process on another machine

    async def test_the_events_end_with_the_backend(self, opener: Opener) -> None:
        async with opener() as (backend, _):
            watching = asyncio.ensure_future(_collect(backend.events()))
        assert {event.kind for event in await asyncio.wait_for(watching, 60)} <= {"nodes", "resync"}
        await backend.close()

    # Steps

    async def find_room(self, backend: Backend, request: Request) -> Placement:
        """Wait until the default policy finds room for a request, and return the placement.

        The cluster may report a freed slice late.
        """
        await self.until(backend, lambda s: _fits(s, request))
        decision = get_policy("balanced").place(request, await backend.snapshot())
        assert decision.placement is not None, decision.reason
        return decision.placement

    async def claim(self, backend: Backend, kernel_id: str, request: Request, placement: Placement) -> Lease:
        """Claim a placement for a kernel. Return the lease, or raise `LeaseConflict`."""
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

    async def timed_claim(
        self, backend: Backend, kernel_id: str, request: Request, placement: Placement
    ) -> tuple[Lease | LeaseConflict, float]:
        """Claim a placement. Return the lease or the refusal, and the seconds that the claim took."""
        began = time.monotonic()
        try:
            return await self.claim(backend, kernel_id, request, placement), time.monotonic() - began
        except LeaseConflict as refusal:
            return refusal, time.monotonic() - began

    async def take(
        self, backend: Backend, kernel_id: str, request: Request, placement: Placement | None = None
    ) -> Lease:
        """Claim room for a request, anywhere by default, and return the lease when it is held."""
        if placement is None:
            placement = await self.find_room(backend, request)
        return await self.held(backend, await self.claim(backend, kernel_id, request, placement))

    async def held(self, backend: Backend, lease: Lease) -> Lease:
        """Wait until a lease is held, and return it. A repeated claim returns its present state."""
        deadline = time.monotonic() + self.held_s
        while lease.state == "pending":
            assert lease.reason, "a pending lease has a reason"
            assert time.monotonic() < deadline, f"it is still pending: {lease.reason}"
            await self._next_event(backend)
            lease = await backend.claim(lease)
        assert lease.state == "held", lease.reason
        return lease

    async def until(self, backend: Backend, condition: Callable[[Snapshot], bool]) -> None:
        """Wait until the snapshot meets the condition. Raise `AssertionError` after `held_s`."""
        deadline = time.monotonic() + self.held_s
        while not condition(await backend.snapshot()):
            assert time.monotonic() < deadline, "no event has made the condition true"
            await self._next_event(backend)

    async def _next_event(self, backend: Backend) -> None:
        try:
            await asyncio.wait_for(anext(backend.events()), 1.0)
        except (asyncio.TimeoutError, RoostError):
            return  # the state is read again in any case


def _fits(snapshot: Snapshot, request: Request) -> bool:
    return get_policy("balanced").place(request, snapshot).placement is not None


async def _collect(events: AsyncIterator[BackendEvent]) -> list[BackendEvent]:
    return [event async for event in events]


async def _is_open(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 5.0)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True
