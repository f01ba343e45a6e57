"""The promises of every backend (`roost.scheduler.backends.base`), as tests that other packages can run.

The tests need pytest and pytest-asyncio. Each test leaves nothing behind on the cluster, also if it fails.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from roost.launchers.protocol.messages import Connection, Launch, Lease
from roost.placement import Placement, Request
from roost.scheduler.backends.base import Backend, BackendEvent
from roost.scheduler.errors import LeaseConflict

from .contract_steps import (
    KERNEL,
    OWNER,
    ContractSteps,
    Opener,
    describe,
    fits,
    is_clause,
    name_kernel,
    name_lease,
    open_backend,
)
from .deadlines import allow_s
from .live_kernel import is_open
from .promises import (
    BECOMES_HELD,
    CLAIMS_AGAIN,
    CLOSES,
    COUNTS_LEASE,
    COUNTS_NO_MORE,
    COUNTS_OTHERS,
    ENDS_EVENTS,
    ENDS_KERNEL,
    GRANTS_ONCE,
    HAS_AGENT,
    HAS_REASON,
    KEEPS_LEASE,
    LISTS,
    QUEUES,
    REFUSES_ALL,
    REFUSES_SOON,
    SAME_ANSWER,
    STARTS_KERNEL,
    TRANSFERS,
    BrokenPromise,
    expect,
    promised,
    until_kept,
)

__all__ = ["OWNER", "BackendContract", "Opener", "Scarce", "open_backend"]

MEMORY_BYTES = 256 << 20
"""The memory of a request. It is enough for an agent in a container."""
_SLOWER = 10.0
Scarce = Callable[..., Request]
"""A function that returns a request for an amount of the scarce resource. Keywords are other fields of `Request`."""
K, OTHER, NEVER = map(name_kernel, ("k", "other", "never"))


@pytest.mark.asyncio
class BackendContract(ContractSteps):
    """A mixin of tests for one backend. Its cluster has a node with 2 free units of a scarce resource, and 2 CPUs.

    Override `opener`. Override `scarce` if the scarce resource is not whole GPUs, and `kernel_python` if a pod has
    another Python. A failed test raises `BrokenPromise`, which names the promise. Its leases are released.
    """

    refused_s = 5.0
    """How long a refusal may take, if grants are quick. It may always take ten times as long as a grant beside it.

    On a busy machine both take longer.
    """

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
            await self.until(backend, lambda _: not backend.is_still_reading)
            before = await backend.snapshot()
            request = scarce(1, cpus=1, memory_bytes=MEMORY_BYTES, owner="ada")
            lease = await self.take(backend, K, request)
            kept = lease.kernel_id, lease.owner, lease.request
            expect(kept == (K, OWNER, request), KEEPS_LEASE, f"the held lease has {kept}")
            snapshot = await backend.snapshot()
            node, was = snapshot.node(lease.node_id), before.node(lease.node_id)
            more = (
                node.cpus_promised - was.cpus_promised,
                node.memory_promised_bytes - was.memory_promised_bytes,
                [device.promised for device in node.devices if device.id in lease.device_ids],
                node.kernels_of("ada") - was.kernels_of("ada"),
            )
            asked = 1, MEMORY_BYTES, [1.0] * request.gpu_count, 1
            found = f"(CPUs, bytes, devices, kernels of ada) are {more} more, not {asked}; now {describe(snapshot)}"
            expect(more == asked, COUNTS_LEASE, found)
            await self.release(backend, lease)
            await self.until(
                backend, lambda s: s.node(lease.node_id).cpus_promised == was.cpus_promised, COUNTS_NO_MORE
            )
            after = (await backend.snapshot()).node(lease.node_id)
            devices = [device.promised for device in after.devices]
            free = [device.promised for device in was.devices]
            expect(devices == free, COUNTS_NO_MORE, f"the devices are promised by {devices}, not {free}")
            found = f"ada has {after.owners}, before it was {was.owners}"
            expect(after.owners == was.owners, COUNTS_NO_MORE, found)

    async def test_claims_and_releases_may_be_repeated(self, opener: Opener, scarce: Scarce) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(1))
            first = await self.take(backend, K, scarce(1), placement)
            again = await self.take(backend, K, scarce(1), placement)
            expect(again == first, SAME_ANSWER, f"the first answer was {first}, the second one {again}")
            listed = await self.list_ids(backend)
            expect(listed == {first.id}, LISTS, f"`leases` lists {listed}, claimed was {first.id}")
            await self.release(backend, first)
            await self.release(backend, first)
            await self.release(backend, replace(first, id=name_lease(NEVER)))
            listed = await self.list_ids(backend)
            expect(not listed, LISTS, f"after the release, `leases` lists {listed}")
            placement = await self.find_room(backend, scarce(1))
            with promised(CLAIMS_AGAIN, "claim"):
                claimed = await self.held(backend, await self.claim(backend, K, scarce(1), placement))
            await self.release(backend, claimed)

    async def test_a_slice_is_granted_once_and_refusals_are_quick(
        self, opener: Opener, scarce: Scarce, record_property: Callable[[str, object], None]
    ) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(2))
            warm = await self.take(
                backend, name_kernel("warm"), scarce(1), placement
            )  # the first one is slow
            await self.release(backend, warm)
            await self.until(backend, lambda s: fits(s, scarce(2)), COUNTS_NO_MORE)
            outcomes = await self.contend(backend, scarce(1), placement, 4)
            granted = [outcome for outcome, _ in outcomes if isinstance(outcome, Lease)]
            accepted = [f"{lease.state} ({lease.reason})" for lease in granted]
            found = f"of 4 claims on 2 units, {len(granted)} were accepted: {', '.join(accepted)}"
            expect(len(granted) == 2, GRANTS_ONCE, found)
            slowest_s, grant_s = (
                max(took_s for outcome, took_s in outcomes if isinstance(outcome, kind))
                for kind in (LeaseConflict, Lease)
            )
            record_property("slowest_refusal_s", slowest_s)
            limit_s = max(self.refused_s, _SLOWER * grant_s)
            found = f"a refusal took {slowest_s:.1f} s and a grant {grant_s:.1f} s"
            expect(slowest_s < limit_s, REFUSES_SOON, found)
            snapshot = await backend.snapshot()
            expect(not fits(snapshot, scarce(1)), COUNTS_LEASE, f"there is room left: {describe(snapshot)}")
            listed, ids = await self.list_ids(backend), {lease.id for lease in granted}
            expect(listed == ids, REFUSES_ALL, f"`leases` lists {listed}, granted were {ids}")
            if backend.growth.adds_nodes:
                await self.wait_in_the_queue(backend, scarce(1), granted.pop())
            for lease in granted:
                await self.release(backend, lease)

    async def test_leases_are_found_again_by_another_process(self, opener: Opener, scarce: Scarce) -> None:
        async with opener() as (backend, _):
            lease = await self.take(backend, K, scarce(1, cpus=1, owner="ada"))
        async with opener() as (backend, _):
            found = [await self.held(backend, found) for found in await self.find_leases(backend)]
            expect(found == [lease], LISTS, f"another process reads {found}, claimed was {lease}")
            await self.release(backend, lease)
            listed = await self.list_ids(backend)
            expect(not listed, LISTS, f"after the release, `leases` lists {listed}")

    async def test_a_pending_lease_has_a_reason_and_can_be_cancelled(
        self, opener: Opener, scarce: Scarce
    ) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(1))
            lease = await self.claim(backend, K, scarce(1), placement)
            if lease.state == "pending":
                expect(is_clause(lease.reason), HAS_REASON, f"the reason is {lease.reason!r}")
            await self.release(backend, lease)
            listed = await self.list_ids(backend)
            expect(not listed, LISTS, f"after the release, `leases` lists {listed}")
            await self.until(backend, lambda s: fits(s, scarce(2)), COUNTS_NO_MORE)

    async def test_a_pending_lease_goes_on_in_another_process(self, opener: Opener, scarce: Scarce) -> None:
        async with opener() as (backend, _):
            placement = await self.find_room(backend, scarce(1))
            claimed = await self.claim(backend, K, scarce(1), placement)
        async with opener() as (backend, _):
            leases = await self.find_leases(backend)
            kept = [(found.id, found.request, found.owner) for found in leases]
            asked = [(claimed.id, claimed.request, OWNER)]
            expect(kept == asked, LISTS, f"another process reads {kept}, claimed was {asked}")
            found = await self.held(backend, leases[0])
            expect(found.state == "held", BECOMES_HELD, f"the lease is {found.state}")
            await self.release(backend, found)

    async def test_a_lease_has_the_owner_that_its_agent_knows(self, opener: Opener) -> None:
        other = replace(OWNER, application="next")
        async with opener() as (backend, agents):
            lease = await self.take(backend, K, Request(cpus=1))
            client = await agents.client(await backend.agent(lease))
            await client.transfer(lease.id, other)
        async with opener() as (backend, _):
            leases = await self.find_leases(backend)
            expect(len(leases) == 1, LISTS, f"another process reads {leases}")
            found, wanted = await self.held(backend, leases[0]), replace(lease, owner=other)
            expect(found == wanted, TRANSFERS, f"another process reads {found}, not {wanted}")
            await self.release(backend, wanted)

    async def test_the_lease_of_another_scheduler_shows_after_an_event(
        self, opener: Opener, scarce: Scarce
    ) -> None:
        async with opener() as (mine, _), opener() as (theirs, _):
            placement = await self.find_room(mine, scarce(2))
            lease = await self.take(theirs, OTHER, scarce(2), placement)
            await self.until(mine, lambda s: not fits(s, scarce(1)), COUNTS_OTHERS)
            await self.release(theirs, lease)
            await self.until(mine, lambda s: fits(s, scarce(1)), COUNTS_NO_MORE)

    async def test_each_lease_has_an_agent_that_knows_it(self, opener: Opener) -> None:
        """Two leases are tested. They may share an agent, if they are on the same node."""
        async with opener() as (backend, agents):
            leases = [await self.take(backend, kernel_id, Request(cpus=1)) for kernel_id in (K, OTHER)]
            for lease in leases:
                with promised(HAS_AGENT, "agent"):
                    client = await agents.client(await backend.agent(lease))
                    noted = [held.id for held in (await client.holdings()).leases]
                    same = client is await agents.client(await backend.agent(lease))
                expect(lease.id in noted, HAS_AGENT, f"its agent has noted {noted}, not {lease.id}")
                expect(same, HAS_AGENT, "a second call returned the address of another agent")
            for lease in leases:
                await self.release(backend, lease)

    async def test_a_kernel_ends_with_its_lease(self, opener: Opener, kernel_python: str) -> None:
        async with opener() as (backend, agents):
            lease = await self.take(backend, K, Request(cpus=1))
            launch = Launch(
                launch_id="1",
                lease_id=lease.id,
                kernel_id=K,
                argv=(kernel_python, "-c", KERNEL, "{connection_file}"),
                env={"PATH": os.environ["PATH"]},
                cwd="/",
                connection=Connection(key="secret"),
            )
            with promised(STARTS_KERNEL, "AgentClient.launch"):
                client = await agents.client(await backend.agent(lease))
                connection = (await client.launch(launch)).connection
            assert connection is not None
            address = connection.ip, connection.shell_port
            expect(await is_open(address), STARTS_KERNEL, f"nothing answers at {address}")
            await self.release(backend, lease)

            async def is_closed() -> bool:
                return not await is_open(address)

            found = f"after the release, the kernel still listens at {address}"
            await until_kept(is_closed, ENDS_KERNEL, lambda: found, self.held_s, 0.1)

    async def test_the_events_end_with_the_backend(self, opener: Opener) -> None:
        async with opener() as (backend, _):
            watching = asyncio.ensure_future(_collect(backend.events()))
        try:
            events = await asyncio.wait_for(watching, allow_s(self.held_s))
        except asyncio.TimeoutError:
            raise BrokenPromise(ENDS_EVENTS, "`events` goes on after `close`") from None
        about_leases = [event for event in events if event.kind not in ("nodes", "resync")]
        expect(
            not about_leases, ENDS_EVENTS, f"without a lease, there were events about leases: {about_leases}"
        )
        with promised(CLOSES, "close"):
            await backend.close()

    # Steps

    async def contend(
        self, backend: Backend, request: Request, placement: Placement, claims: int
    ) -> list[tuple[Lease | LeaseConflict, float]]:
        """Claim the same placement for several kernels at once. Return each answer, and the seconds that it took.

        A grant takes until the lease is held. A lease that is still pending once all claims are answered is returned as
        it is then. Raises `BrokenPromise` if a claim is not answered.
        """
        answered = 0

        async def attempt(number: int) -> tuple[Lease | LeaseConflict, float]:
            nonlocal answered
            began = self.clock()
            outcome, _ = await self.timed_claim(backend, name_kernel(f"k{number}"), request, placement)
            answered += 1
            while isinstance(outcome, Lease) and outcome.state == "pending" and answered < claims:
                await self.next_event(backend)
                outcome = await backend.claim(outcome)
            return outcome, self.clock() - began

        attempts = [asyncio.ensure_future(attempt(number)) for number in range(claims)]
        try:
            return await asyncio.gather(*attempts)
        except BrokenPromise as broken:
            if not isinstance(broken.__cause__, asyncio.TimeoutError):
                raise
            raise BrokenPromise(GRANTS_ONCE, broken.found) from broken
        finally:
            for task in attempts:
                task.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    async def wait_in_the_queue(self, backend: Backend, request: Request, holder: Lease) -> None:
        """Claim a request without a node while no node has room, and let it wait until `holder` is released."""
        kernel_id = name_kernel("queued")
        wanted = replace(
            holder, id=name_lease(kernel_id), kernel_id=kernel_id, request=request, node_id="", device_ids=()
        )
        with promised(QUEUES, "claim"):
            queued = await self.claim_lease(backend, wanted)
        expect(queued.state == "pending", QUEUES, f"no node has room, but the lease is {queued.state}")
        await self.release(backend, holder)
        await self.release(backend, await self.held(backend, queued))


async def _collect(events: AsyncIterator[BackendEvent]) -> list[BackendEvent]:
    return [event async for event in events]
