"""The steps of the contract suite: find room, claim, wait until a lease is held, release, give back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import pytest_asyncio

from roost.launchers.protocol.messages import PORT_NAMES, Lease, Owner
from roost.placement import Placement, Request, Snapshot, get_policy
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend
from roost.scheduler.errors import LeaseConflict, RoostError

from .deadlines import allow_s
from .promises import (
    ANSWERS,
    BECOMES_HELD,
    ENDS_EVENTS,
    GRANTS_ROOM,
    HAS_REASON,
    KEEPS_LEASE,
    LISTS,
    RELEASES,
    SHOWS_ROOM,
    BrokenPromise,
    expect,
    promised,
    until_kept,
)

OWNER = Owner(user="ada", application="test", host="here", pid=1, process_started_at=1.0, can_adopt=True)
Opener = Callable[[], AbstractAsyncContextManager[tuple[Backend, Agents]]]
"""A function that opens the backend. A second call opens the backend as another process would."""
KERNEL = f"""
import json, socket, sys, time
connection = json.load(open(sys.argv[1]))
sockets = [socket.create_server((connection["ip"], connection[name])) for name in {PORT_NAMES}]
time.sleep(3600)
"""
"""A program that listens on the ports of a kernel and does nothing else."""
_CLOSE_S = 30.0
_SCHEDULER = "service-of-the-contract-suite"
_LAUNCH_ID = uuid.uuid4().hex
"""The launch of all leases of this process. A later run on the same cluster has another one."""


def name_kernel(name: str) -> str:
    """Return a kernel id for this name, in Jupyter's form: always the same one."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def name_lease(kernel_id: str) -> str:
    """Return the id of a kernel's lease, in the form and length of a real one."""
    return f"roost:{kernel_id}:{_SCHEDULER}/{_LAUNCH_ID}"


@asynccontextmanager
async def open_backend(create: Callable[[Agents], Backend]) -> AsyncIterator[tuple[Backend, Agents]]:
    """Create a backend, open it, and close it at the end."""
    agents = Agents()
    backend = create(agents)
    await backend.open()
    try:
        yield backend, agents
    finally:
        with promised(ENDS_EVENTS, "close"):
            await asyncio.wait_for(backend.close(), allow_s(_CLOSE_S))
        await agents.close()


class ContractSteps:
    """The steps of the contract's tests, and the leases that a test has taken. A failed test gives them back too."""

    held_s = 60.0
    """How long the suite waits for a change that must come. It is patience, not a measure, and grows with the load."""
    clock: Callable[[], float] = staticmethod(time.monotonic)
    """The clock that measures how long a claim takes."""

    @property
    def taken(self) -> dict[str, Lease]:
        """The leases that this test has claimed and not released, by id."""
        taken: dict[str, Lease] = self.__dict__.setdefault("_taken", {})
        return taken

    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError(
            "override the fixture `opener`: it returns a function that opens the backend"
        )

    @pytest_asyncio.fixture(autouse=True)
    async def no_lease_left(self, opener: Opener) -> AsyncIterator[None]:
        """Give back the leases that a failed test has left, so that the next test does not fail for them."""
        yield
        if self.taken:
            await self.give_back(opener)

    async def give_back(self, opener: Opener) -> None:
        """Release all leases that this test has taken. Raises `BrokenPromise` if the backend still lists one."""
        leases = list(self.taken.values())
        self.taken.clear()
        async with opener() as (backend, _):
            for lease in leases:
                with promised(RELEASES, "release"):
                    await asyncio.wait_for(backend.release(lease), allow_s(self.held_s))
            kept = await self.list_ids(backend) & {lease.id for lease in leases}
            expect(not kept, LISTS, f"after their release, `leases` lists {sorted(kept)}")

    async def list_ids(self, backend: Backend) -> set[str]:
        """Return the ids of all leases."""
        ids = [lease.id for lease in (await backend.leases()).leases]
        expect(len(ids) == len(set(ids)), LISTS, f"`leases` lists {ids}")
        return set(ids)

    async def find_leases(self, backend: Backend) -> tuple[Lease, ...]:
        """Return all leases, once there is one and its owner is known. Masters and agents may answer late."""
        leases: tuple[Lease, ...] = ()

        async def are_known() -> bool:
            nonlocal leases
            leases = (await backend.leases()).leases
            return bool(leases) and all(lease.owner.pid for lease in leases)

        await until_kept(are_known, LISTS, lambda: f"another process reads {leases}", self.held_s, 0.2)
        return leases

    async def find_room(self, backend: Backend, request: Request) -> Placement:
        """Wait until the default policy finds room for a request, and return the placement.

        The cluster may report a freed slice late.
        """
        await self.until(backend, lambda s: fits(s, request), SHOWS_ROOM)
        decision = get_policy("balanced").place(request, await backend.snapshot())
        expect(decision.placement is not None, SHOWS_ROOM, decision.reason)
        assert decision.placement is not None
        return decision.placement

    async def claim(self, backend: Backend, kernel_id: str, request: Request, placement: Placement) -> Lease:
        """Claim a placement for a kernel. Return the lease, or raise `LeaseConflict`."""
        wanted = Lease(
            id=name_lease(kernel_id),
            kernel_id=kernel_id,
            owner=OWNER,
            request=request,
            node_id=placement.node_id,
            device_ids=placement.device_ids,
        )
        return await self.claim_lease(backend, wanted)

    async def claim_lease(self, backend: Backend, wanted: Lease) -> Lease:
        """Claim a lease, and remember it until it is released. Return it, or raise `LeaseConflict`."""
        is_new = wanted.id not in self.taken
        self.taken.setdefault(wanted.id, wanted)
        try:
            lease = await asyncio.wait_for(backend.claim(wanted), allow_s(self.held_s))
        except LeaseConflict:
            if is_new:
                del self.taken[wanted.id]
            raise
        except Exception as problem:
            raise BrokenPromise(ANSWERS, self._describe("claim", problem)) from problem
        self.taken[wanted.id] = lease
        asked = wanted.id, wanted.kernel_id, wanted.owner, wanted.request
        kept = lease.id, lease.kernel_id, lease.owner, lease.request
        expect(kept == asked, KEEPS_LEASE, f"`claim` returned {kept} for {asked}")
        expect(lease.state in ("held", "pending"), ANSWERS, f"`claim` returned a {lease.state} lease")
        return lease

    async def timed_claim(
        self, backend: Backend, kernel_id: str, request: Request, placement: Placement
    ) -> tuple[Lease | LeaseConflict, float]:
        """Claim a placement. Return the lease or the refusal, and the seconds that the claim took."""
        began = self.clock()
        try:
            return await self.claim(backend, kernel_id, request, placement), self.clock() - began
        except LeaseConflict as refusal:
            return refusal, self.clock() - began

    async def take(
        self, backend: Backend, kernel_id: str, request: Request, placement: Placement | None = None
    ) -> Lease:
        """Claim room for a request, anywhere by default, and return the lease when it is held."""
        if placement is None:
            placement = await self.find_room(backend, request)
        try:
            lease = await self.claim(backend, kernel_id, request, placement)
        except LeaseConflict as refusal:
            found = f"`claim` refused {request.describe()} on {placement.node_id}: {refusal}"
            raise BrokenPromise(GRANTS_ROOM, found) from refusal
        return await self.held(backend, lease)

    async def held(self, backend: Backend, lease: Lease) -> Lease:
        """Wait until a lease is held, and return it. A repeated claim returns its present state."""

        async def is_settled() -> bool:
            nonlocal lease
            if lease.state == "pending":
                expect(is_clause(lease.reason), HAS_REASON, f"the reason is {lease.reason!r}")
                await self.next_event(backend)
                with promised(BECOMES_HELD, "claim"):
                    lease = await backend.claim(lease)
            return lease.state != "pending"

        await until_kept(
            is_settled, BECOMES_HELD, lambda: f"the lease is still pending: {lease.reason}", self.held_s
        )
        expect(lease.state == "held", BECOMES_HELD, f"the lease is {lease.state}: {lease.reason}")
        if lease.id in self.taken:
            self.taken[lease.id] = lease
        return lease

    async def release(self, backend: Backend, lease: Lease) -> None:
        """Release a lease."""
        with promised(RELEASES, "release"):
            await asyncio.wait_for(backend.release(lease), allow_s(self.held_s))
        self.taken.pop(lease.id, None)

    async def until(
        self, backend: Backend, condition: Callable[[Snapshot], bool], promise: str = SHOWS_ROOM
    ) -> None:
        """Wait until the snapshot meets the condition. Raise `BrokenPromise` if it never does."""
        snapshot = await backend.snapshot()

        async def is_met() -> bool:
            nonlocal snapshot
            if not condition(snapshot):
                await self.next_event(backend)
                snapshot = await backend.snapshot()
            return condition(snapshot)

        await until_kept(is_met, promise, lambda: f"the snapshot is {describe(snapshot)}", self.held_s)

    async def next_event(self, backend: Backend) -> None:
        """Wait for the next event, or for a second. The caller reads the state again in any case."""
        try:
            await asyncio.wait_for(anext(backend.events()), 1.0)
        except StopAsyncIteration:
            raise BrokenPromise(ENDS_EVENTS, "`events` has ended while the backend is open") from None
        except (asyncio.TimeoutError, RoostError):
            return

    def _describe(self, call: str, problem: Exception) -> str:
        if isinstance(problem, asyncio.TimeoutError):
            return f"`{call}` has not answered within {self.held_s:g} s"
        return f"`{call}` raised {type(problem).__name__}: {problem}"


def fits(snapshot: Snapshot, request: Request) -> bool:
    """True if the default policy finds room for the request."""
    return get_policy("balanced").place(request, snapshot).placement is not None


def is_clause(reason: str) -> bool:
    """True if a reason is not empty and has no full stop at its end."""
    return bool(reason.strip()) and not reason.rstrip().endswith(".")


def describe(snapshot: Snapshot) -> str:
    """Return the promised and the total amounts of each node, for an error's text."""
    nodes = [snapshot.node(node_id) for node_id in snapshot.nodes[:8]]
    return "; ".join(
        f"{node.id}: {node.cpus_promised:g} of {node.cpus:g} CPUs, {node.memory_promised_bytes} of "
        f"{node.memory_bytes} bytes, devices {[(device.id, device.promised) for device in node.devices]}, "
        f"resources {dict(node.resources_promised)} of {dict(node.resources)} promised"
        for node in nodes
    )
