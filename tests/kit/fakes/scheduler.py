"""A scheduler on fake nodes or fake pods (`roost.testing`), and its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from roost.launchers.protocol.messages import Connection, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.local.settings import RoostLocalBackend
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.scheduler import Scheduler
from roost.scheduler.messages import Event, Kernel, StartKernel
from roost.testing import FakeAgent, FakeBackend, FakePodCluster, pod_backend
from roost.testing.deadlines import allow_s


class FakeWorld:
    """A scheduler on fake nodes or on fake pods, and its events."""

    def __init__(
        self,
        fakes: list[FakeAgent],
        settings: Settings,
        name: str,
        local: RoostLocalBackend | None = None,
        pods: FakePodCluster | None = None,
        folder: Path | None = None,
    ) -> None:
        agents = Agents()
        self.settings = settings
        self.fakes = fakes
        self.backend: Any = pod_backend(pods, agents) if pods else FakeBackend(fakes, settings, agents, local)
        self.scheduler = Scheduler(self.backend, agents, settings, name=name, folder=folder)
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        self.scheduler.events.listen(self._on_event)

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    @property
    def agent(self) -> FakeAgent:
        """The agent of the first node."""
        return self.fakes[0]

    def start(self, kernel_id: str, launch_id: str = "1", **asked: Any) -> asyncio.Task[Kernel]:
        """Begin the start of a kernel.

        `asked` are fields of `Request`, some of `StartKernel`, `user` or `kernel_name`.
        """
        own = {
            name: asked.pop(name)
            for name in ("owner", "launch_timeout_s", "queue_timeout_s", "asked_at")
            if name in asked
        }
        owner = own.pop("owner", None) or Owner(user=asked.pop("user", "ada"))
        connection = Connection(key="hush", kernel_name=asked.pop("kernel_name", ""))
        start = StartKernel(
            kernel_id=kernel_id,
            launch_id=launch_id,
            request=Request(**asked),
            owner=owner,
            argv=("kernel", "{connection_file}"),
            env={"SECRET": "hush"},
            cwd="/",
            connection=connection,
            **{"launch_timeout_s": allow_s(10.0), **own},
        )
        return asyncio.ensure_future(self.scheduler.start(start))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true, which is checked after each event and now and then: not all tells."""

        async def read() -> bool:
            return not condition()

        await self.until_not(read, 60.0)

    async def until_not(self, read: Callable[[], Awaitable[object]], timeout_s: float = 5.0) -> None:
        """Wait until `read` returns something empty."""
        deadline = asyncio.get_running_loop().time() + allow_s(timeout_s)
        while await read():
            assert asyncio.get_running_loop().time() < deadline
            self._changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.05)

    async def told(self, kind: str, kernel_id: str = "", times: int = 1) -> None:
        """Wait until `times` events of that kind have come, for that kernel if one is given."""
        await self.until(lambda: self.count(kind, kernel_id) >= times)

    def count(self, kind: str, kernel_id: str = "") -> int:
        return sum(
            event.kind == kind
            and (not kernel_id or (event.kernel is not None and event.kernel.id == kernel_id))
            for event in self.events
        )

    def kernel(self, kernel_id: str) -> Kernel:
        return self.scheduler.kernel(kernel_id)

    def leases(self) -> list[str]:
        """Return the ids of the leases in the ledgers of all nodes."""
        return [lease for fake in self.fakes for lease in fake.held_leases()]


@asynccontextmanager
async def fake_world(
    folder: Path, *, nodes: tuple[str, ...] = ("here",), settings: Settings | None = None, **totals: Any
) -> AsyncIterator[FakeWorld]:
    """Open a scheduler on fake nodes, which all have the same `totals`. Close everything at the end."""
    fakes = [FakeAgent(folder / name, name=name, **totals) for name in nodes]
    async with AsyncExitStack() as stack:
        for fake in fakes:
            stack.push_async_callback(fake.close)
        yield await stack.enter_async_context(scheduler_on(fakes, settings))


@asynccontextmanager
async def scheduler_on(
    fakes: list[FakeAgent],
    settings: Settings | None = None,
    name: str = "s",
    local: RoostLocalBackend | None = None,
    *,
    pods: FakePodCluster | None = None,
    folder: Path | None = None,
) -> AsyncIterator[FakeWorld]:
    """Open a scheduler on these nodes or pods, where earlier schedulers may have run. Close it at the end."""
    made = FakeWorld(fakes, settings or Settings(), name, local, pods, folder)
    await made.scheduler.open()
    try:
        yield made
    finally:
        await made.scheduler.close()
