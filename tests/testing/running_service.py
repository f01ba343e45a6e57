"""A service in the tests' process, on a backend that the contract suite tests, and the events of its clients."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from roost.launchers.protocol.messages import Connection, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend, Lease, LeaseReading
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.scheduler import Scheduler
from roost.scheduler.messages import Event, Kernel, StartKernel

from .contract_steps import Opener
from .deadlines import allow_s
from .promises import until_kept

ME = this_owner(application="the contract suite")
"""The holder of the kernels: this process."""


class RunningService:
    """A scheduler on one backend. `name` marks its leases, so that a later service with this name finds them.

    `kernel` is the command of its kernels. `patience_s` is how long it waits for a change that must come.
    """

    def __init__(
        self, backend: Backend, agents: Agents, name: str, kernel: tuple[str, ...], patience_s: float
    ) -> None:
        self.backend = backend
        self.agents = agents
        self.name = name
        self.events: list[Event] = []
        self.scheduler = Scheduler(backend, agents, Settings(), name=name)
        self._kernel = kernel
        self._patience_s = patience_s
        self._readings = 0
        self._changed = asyncio.Event()
        self._has_read = asyncio.Event()
        self.scheduler.events.listen(self._on_event)
        read = backend.leases

        async def count_reading() -> LeaseReading:
            self._readings += 1
            self._has_read.set()
            return await read()

        backend.leases = count_reading  # type: ignore[method-assign]

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    def lease_of(self, kernel_id: str, launch_id: str, request: Request, node_id: str = "") -> Lease:
        """Return the lease that this service takes for a start."""
        lease_id = f"roost:{kernel_id}:{self.name}/{launch_id}"
        return Lease(id=lease_id, kernel_id=kernel_id, owner=ME, request=request, node_id=node_id)

    async def start(self, kernel_id: str, launch_id: str, request: Request, owner: Owner = ME) -> Kernel:
        """Start a kernel that listens on its ports and does nothing else."""
        return await self.scheduler.start(
            StartKernel(
                kernel_id=kernel_id,
                launch_id=launch_id,
                request=request,
                owner=owner,
                argv=self._kernel,
                env={"PATH": os.environ["PATH"]},
                cwd="/",
                connection=Connection(key="secret"),
                launch_timeout_s=allow_s(self._patience_s),
            )
        )

    def news_of(self, kernel_id: str, since: int = 0) -> Counter[str]:
        """Return how many events of each kind were about this kernel, from event number `since` on."""
        return Counter(
            event.kind
            for event in self.events[since:]
            if event.kernel is not None and event.kernel.id == kernel_id
        )

    def reasons_of(self, kernel_id: str) -> list[str]:
        """Return the reason in each event that reports the end of this kernel's lease."""
        return [
            event.detail
            for event in self.events
            if event.kind == "released" and event.kernel is not None and event.kernel.id == kernel_id
        ]

    @property
    def kernels(self) -> set[str]:
        """The ids of the kernels that this service has."""
        return {kernel.id for kernel in self.scheduler.kernels()}

    async def compare(self) -> None:
        """Have the service compare its kernels with all leases. Return once it has done so, and acted on it.

        A reading begins only after the comparison with the one before.
        """
        for _ in range(2):
            before = self._readings
            self.scheduler.reconciler.soon()
            while self._readings == before:
                self._has_read.clear()
                await asyncio.wait_for(self._has_read.wait(), allow_s(self._patience_s))

    async def until(
        self, condition: Callable[[], bool | Awaitable[bool]], promise: str, describe: Callable[[], str]
    ) -> None:
        """Wait until a condition is true, which is checked after each event, and each 0.1 s.

        Raise `BrokenPromise` with what `describe` returns if it never is. `patience_s` is the deadline.
        """

        async def is_met() -> bool:
            is_true = condition()
            if is_true if isinstance(is_true, bool) else await is_true:
                return True
            self._changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.1)
            return False

        await until_kept(is_met, promise, describe, self._patience_s)


@asynccontextmanager
async def running_service(
    opener: Opener, name: str, kernel: tuple[str, ...], patience_s: float
) -> AsyncIterator[RunningService]:
    """Open a service on a backend, and close it at the end. Its kernels and leases stay."""
    async with opener() as (backend, agents):
        service = RunningService(backend, agents, name, kernel, patience_s)
        await service.scheduler.reconciler.open()
        try:
            yield service
        finally:
            await service.scheduler.close()
