"""The promises about leases when news are late, missing or wrong, as tests that other packages can run.

Each test runs a whole service (`roost.scheduler.core`) on the backend, because a promise is about the news that clients
get. The manager may be a real one or a fake: its faults lie between it and roost (`faults.py`). A case that a shape of
backends cannot have is skipped, with a reason. A test that expects no event waits for a later comparison of kernels and
leases, never for a time.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace

import pytest

from roost.launchers.protocol.messages import AgentEvent, Lease, Owner
from roost.placement import Request, Snapshot
from roost.scheduler.errors import BackendUnavailable, Cancelled

from .contract_steps import KERNEL, ContractSteps, Opener, describe, name_kernel
from .faults import Faults
from .lease_promises import (
    BRIDGES_GAPS,
    FOLLOWS_NODE,
    LEAVES_OTHERS,
    LOST_ONCE,
    LOST_SILENTLY,
    STAYS_RELEASED,
    UNDOES_LATE,
)
from .promises import COUNTS_NO_MORE, COUNTS_OTHERS, ENDS_KERNEL, LISTS, expect, until_kept
from .running_service import ME, RunningService, running_service

K, OTHER = map(name_kernel, ("k", "other"))
NOBODY = replace(ME, pid=2**22 + 1, process_started_at=1.0, can_adopt=False)
"""An owner whose process has ended: no process has such a high number."""
ONE_CPU = Request(cpus=1)
_ENDED = "its node was switched off"
_STEPS = 20
"""In this many steps of the event loop, the release of a withdrawn claim begins."""


@pytest.mark.asyncio
class LeaseContract(ContractSteps):
    """A mixin of tests for one backend. Its cluster has a node with 2 free CPUs.

    Override `opener`, and `faults_of_backend` with the faults of the backend's shape. Override `kernel_python` if a pod
    has another Python. A failed test raises `BrokenPromise`, which names the promise. Its leases are released.
    """

    @pytest.fixture
    def faults_of_backend(self) -> Faults:
        raise NotImplementedError(
            "override the fixture `faults_of_backend`: it returns the faults of the shape"
        )

    @pytest.fixture
    def kernel_python(self) -> str:
        """Return the command of the Python that runs the kernel. A pod may need another Python than this process."""
        return sys.executable

    @pytest.fixture
    def faults(self, faults_of_backend: Faults, kernel_python: str) -> Iterator[Faults]:
        """Return the faults, which act on all backends that are opened from now on."""
        with pytest.MonkeyPatch.context() as patch:
            self.prepare(kernel_python, faults_of_backend, patch)
            yield faults_of_backend

    def prepare(self, kernel_python: str, faults: Faults, patch: pytest.MonkeyPatch) -> None:
        """Begin a test: install its faults, and choose an id for its launches that no earlier test has used."""
        self.__dict__.update(_python=kernel_python, _launch_id=uuid.uuid4().hex)
        faults.install(patch)

    async def test_late_news_of_a_released_lease_change_nothing(self, opener: Opener, faults: Faults) -> None:
        async with self.service(opener) as service:
            await self.run(service, OTHER)
            lease = await self.run(service, K)
            process = service.scheduler.kernel(K).process
            endpoint = (await service.backend.agent(lease)).endpoint
            await self.end(service, K)
            seen = len(service.events)
            faults.show(lease)
            for kind in ("reserved", "launched", "exited", "lost", "warned"):
                kernel = process if kind in ("launched", "exited") else None
                news = AgentEvent(kind=kind, lease_id=lease.id, kernel=kernel, reason="late")  # type: ignore[arg-type]
                faults.report(endpoint, news)
            await service.compare()
            await self.check_released(service, lease, seen)
            del faults.shown[lease.id]
            if "end" not in faults.lacks:
                faults.end(lease, _ENDED)
            await service.compare()
            await self.check_released(service, lease, seen)
            faults.ended.clear()
            listed = await self.list_ids(service.backend)
            expect(lease.id not in listed, STAYS_RELEASED, f"`leases` lists {listed}")
            await self.end(service, OTHER)

    async def test_a_lease_that_nobody_shows_for_a_while_stays(self, opener: Opener, faults: Faults) -> None:
        async with self.service(opener) as service:
            lease = await self.run(service, K)
            seen = len(service.events)
            async with faults.gap(lease):
                await service.compare()
                await service.until(
                    lambda: faults.may_end_gap or bool(service.news_of(K, seen)),
                    BRIDGES_GAPS,
                    lambda: "the service has not read the node often enough",
                )
            await service.compare()
            news = service.news_of(K, seen)
            expect(not news, BRIDGES_GAPS, f"its holder got {dict(news)}")
            state = service.scheduler.kernel(K).state
            expect(state == "running", BRIDGES_GAPS, f"the kernel is {state}")
            listed = await self.list_ids(service.backend)
            expect(lease.id in listed, BRIDGES_GAPS, f"`leases` lists {listed}")
            await self.end(service, K)

    async def test_a_lease_that_nobody_shows_any_more_is_lost_once(
        self, opener: Opener, faults: Faults
    ) -> None:
        async with self.service(opener) as service:
            await self.run(service, OTHER)
            lease = await self.run(service, K)
            faults.hide(lease)
            await self.check_lost_once(service, K)
            await self.end(service, OTHER)

    async def test_two_services_leave_each_others_leases_alone(self, opener: Opener, faults: Faults) -> None:
        async with self.service(opener) as one:
            before = await one.backend.snapshot()
            mine = await self.run(one, K)
            async with self.service(opener, "another") as two:
                theirs = await self.run(two, OTHER)
                self.check_kept(faults, mine, theirs)
                both = Counter([mine.node_id, theirs.node_id])
                # Before the next reading: news of the other's lease come by themselves.
                for each in (one, two):
                    await self.until_counted(each, both, before, COUNTS_OTHERS)
                for each in (one, two):
                    await each.compare()
                    listed = await self.list_ids(each.backend)
                    found = f"`leases` lists {listed}, claimed were {mine.id} and {theirs.id}"
                    expect({mine.id, theirs.id} <= listed, LEAVES_OTHERS, found)
                self.check_kept(faults, mine, theirs)
                expect(one.kernels == {K}, LEAVES_OTHERS, f"the first service has {one.kernels}")
                expect(two.kernels == {OTHER}, LEAVES_OTHERS, f"the second service has {two.kernels}")
            await one.compare()
            async with self.service(opener, "another") as two:  # the next service of that name
                await self.until_running(two, OTHER, LEAVES_OTHERS)
                expect(two.kernels == {OTHER}, LEAVES_OTHERS, f"the next second service has {two.kernels}")
                await self.end(two, OTHER)
                await self.until_counted(one, Counter([mine.node_id]), before, COUNTS_NO_MORE)
                expect(not two.news_of(K), LEAVES_OTHERS, f"the second service reported {two.news_of(K)}")
            expect(not one.news_of(OTHER), LEAVES_OTHERS, f"the first service reported {one.news_of(OTHER)}")
            await self.until_running(one, K, LEAVES_OTHERS)
            await self.end(one, K)

    async def test_a_claim_that_is_granted_after_its_withdrawal_is_given_back(
        self, opener: Opener, faults: Faults
    ) -> None:
        async with self.service(opener) as service:
            before = await service.backend.snapshot()
            faults.hold_answers()
            starting = asyncio.ensure_future(self.run(service, K))
            claimed = asyncio.ensure_future(faults.is_claimed.wait())
            await asyncio.wait([starting, claimed], return_when=asyncio.FIRST_COMPLETED)
            claimed.cancel()
            cancelling = asyncio.ensure_future(service.scheduler.cancel(K))
            for _ in range(_STEPS):  # so that the release has begun; what waits for the claim goes on waiting
                await asyncio.sleep(0)
            faults.answer()
            await cancelling
            with pytest.raises(Cancelled):
                await starting
            await service.compare()
            listed: set[str] = set()
            async with opener() as (another, _):  # this one may ignore what it has released

                async def is_undone() -> bool:
                    nonlocal listed
                    listed = await self.list_ids(another) | await self.list_ids(service.backend)
                    return not listed

                # The release may outlast the withdrawal.
                await until_kept(
                    is_undone, UNDOES_LATE, lambda: f"`leases` lists {listed}", self.held_s, 0.05
                )
            expect(not service.kernels, UNDOES_LATE, f"the service has {service.kernels}")
            await self.until_counted(service, dict.fromkeys(before.nodes, 0), before, COUNTS_NO_MORE)
            self.taken.clear()

    async def test_a_lease_that_comes_back_on_another_node_counts_there(
        self, opener: Opener, faults: Faults
    ) -> None:
        faults.need("move")
        async with self.service(opener) as service:
            before = await service.backend.snapshot()
            if len(before.nodes) < 2:
                pytest.skip("the cluster has no other node")
            lease = await self.run(service, K)
            seen = len(service.events)
            other = next(node_id for node_id in before.nodes if node_id != lease.node_id)
            faults.move(lease, other)
            await self.until_counted(service, {other: 1, lease.node_id: 0}, before, FOLLOWS_NODE)
            await service.compare()
            news, kernel = service.news_of(K, seen), service.scheduler.kernel(K)
            found = f"its holder got {dict(news)}; the kernel is {kernel.state} on {kernel.node_id}"
            expect(not news and (kernel.state, kernel.node_id) == ("running", other), FOLLOWS_NODE, found)
        async with self.service(opener) as service:
            await self.until_running(service, K, FOLLOWS_NODE)
            node_id = service.scheduler.kernel(K).node_id
            expect(node_id == other, FOLLOWS_NODE, f"the next service finds it on {node_id}")
            await self.end(service, K)

    async def test_a_manager_that_shows_ended_leases_ends_them_once(
        self, opener: Opener, faults: Faults
    ) -> None:
        faults.need("end")
        async with self.service(opener) as service:
            await self.run(service, OTHER)
            lease = await self.run(service, K)
            faults.end(lease, _ENDED)
            await self.check_lost_once(service, K, _ENDED)
            await self.end(service, OTHER)
        async with self.service(opener) as service:  # the manager still shows the lease, and its holder waits
            await service.compare()
            await self.check_lost_once(service, K, _ENDED)

    async def test_an_ended_lease_that_nobody_holds_is_dropped_silently(
        self, opener: Opener, faults: Faults
    ) -> None:
        faults.need("end")
        async with opener() as (backend, _):
            placement = await self.find_room(backend, ONE_CPU)
            wanted = self.lease_of(K, ONE_CPU, placement.node_id, owner=NOBODY)
            lease = await self.held(backend, await self.claim_lease(backend, wanted))
        faults.end(lease, _ENDED)
        async with opener() as (backend, _):
            (found,) = [each for each in (await backend.leases()).leases if each.id == lease.id]
        if not found.owner.pid:
            pytest.skip("the manager does not keep who holds a lease, and its agent has left with its node")
        async with self.service(opener) as service:
            await service.compare()
            news = service.news_of(K)
            expect(not news, LOST_SILENTLY, f"the clients got {dict(news)}")
            expect(not service.kernels, LOST_SILENTLY, f"the service has {service.kernels}")
            expect(lease.id in faults.released, LOST_SILENTLY, "the manager was not asked to take it back")

    async def test_a_lease_that_comes_back_after_its_end_is_listed_once(
        self, opener: Opener, faults: Faults
    ) -> None:
        """A manager may show a lease of another service as ended while that service still creates it."""
        faults.need("end")
        async with opener() as (mine, _), opener() as (theirs, _):
            lease = await self.take(theirs, K, ONE_CPU)
            faults.end(lease, _ENDED)
            lost = [each.state for each in (await mine.leases()).leases if each.id == lease.id]
            expect(lost == ["lost"], LISTS, f"`leases` lists it as {lost} while the manager shows its end")
            faults.ended.clear()
            listed = await self.list_ids(mine)
            expect(lease.id in listed, LISTS, f"`leases` lists {listed} after the lease came back")
            (found,) = [each for each in (await mine.leases()).leases if each.id == lease.id]
            await self.held(mine, found)
            await self.release(theirs, lease)

    # Steps

    def service(self, opener: Opener, name: str = "contract") -> AbstractAsyncContextManager[RunningService]:
        """Open a service on the backend. A second service with this name finds the kernels of the first one."""
        return running_service(
            opener, name, (self.__dict__["_python"], "-c", KERNEL, "{connection_file}"), self.held_s
        )

    def lease_of(self, kernel_id: str, request: Request, node_id: str, *, owner: Owner = ME) -> Lease:
        lease_id = f"roost:{kernel_id}:contract/{self.__dict__['_launch_id']}"
        request = replace(request, owner=owner.user)
        return Lease(id=lease_id, kernel_id=kernel_id, owner=owner, request=request, node_id=node_id)

    async def run(self, service: RunningService, kernel_id: str) -> Lease:
        """Start a kernel that takes one CPU, and return its lease. A failed test releases it."""
        launch_id = self.__dict__["_launch_id"]
        lease = service.lease_of(kernel_id, launch_id, ONE_CPU)
        self.taken[lease.id] = lease
        kernel = await service.start(kernel_id, launch_id, ONE_CPU)
        self.taken[lease.id] = lease = replace(
            lease, request=kernel.request, node_id=kernel.node_id, device_ids=kernel.device_ids
        )
        return lease

    async def end(self, service: RunningService, kernel_id: str) -> None:
        """Stop a kernel, and wait until its lease is released."""
        lease_id = service.scheduler.kernel(kernel_id).lease_id
        with suppress(BackendUnavailable):  # after 10 s the caller is told that the end goes on
            await service.scheduler.stop(kernel_id, 0.0)
        await service.until(
            lambda: kernel_id not in service.kernels, ENDS_KERNEL, lambda: f"{kernel_id} is left"
        )
        self.taken.pop(lease_id, None)

    def check_kept(self, faults: Faults, *leases: Lease) -> None:
        """Check that no service has released these leases."""
        given_back = {lease.id for lease in leases}.intersection(faults.released)
        expect(not given_back, LEAVES_OTHERS, f"{given_back} were released")

    async def check_released(self, service: RunningService, lease: Lease, seen: int) -> None:
        """Check that a released lease has no kernel, and that there was no event about it from number `seen` on."""
        news = service.news_of(lease.kernel_id, seen)
        expect(not news, STAYS_RELEASED, f"the clients got {dict(news)}")
        expect(lease.kernel_id not in service.kernels, STAYS_RELEASED, "the service has its kernel again")

    async def check_lost_once(self, service: RunningService, kernel_id: str, reason: str = "") -> None:
        """Wait until a kernel's lease is lost, and check that its holder gets the reason only once.

        The service compares its kernels with the leases twice more: a second event would come then.
        """
        await service.until(
            lambda: bool(service.reasons_of(kernel_id)),
            LOST_ONCE,
            lambda: f"its holder got {dict(service.news_of(kernel_id))}",
        )
        await service.compare()
        await service.compare()
        reasons = service.reasons_of(kernel_id)
        found = f"the reasons are {reasons}, the events {dict(service.news_of(kernel_id))}"
        expect(len(reasons) == 1 and bool(reasons[0]) and reason in reasons[0], LOST_ONCE, found)
        expect(service.news_of(kernel_id)["exited"] <= 1, LOST_ONCE, found)
        expect(kernel_id not in service.kernels, LOST_ONCE, "the service still has the kernel")

    async def until_running(self, service: RunningService, kernel_id: str, promise: str) -> None:
        """Wait until a service knows that a kernel runs. A new service may have to wait for the kernel's agent."""

        def read() -> str:
            found = [kernel.state for kernel in service.scheduler.kernels() if kernel.id == kernel_id]
            return found[0] if found else "unknown to the service"

        await service.until(lambda: read() == "running", promise, lambda: f"the kernel is {read()}")

    async def until_counted(
        self, service: RunningService, kernels: Mapping[str, int], before: Snapshot, promise: str
    ) -> None:
        """Wait until the service's snapshot counts this many kernels more than before on each of these nodes.

        Not the CPUs: ended kernels of earlier tests may keep them for a while.
        """
        now = before

        async def is_so() -> bool:
            nonlocal now
            now = await service.backend.snapshot()
            more = {
                name: now.node(name).kernels_of(ME.user) - before.node(name).kernels_of(ME.user)
                for name in kernels
            }
            return more == kernels

        await service.until(is_so, promise, lambda: f"it should count {kernels} more; now {describe(now)}")
