"""Functions that start and end the real agent of a test's runtime folder, and a connection to it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from kit.machine.daemons import agent_folder
from kit.machine.tiny_kernel import TINY_ARGV
from roost.launchers.agent.find_or_start import find_or_start_agent
from roost.launchers.agent.limits.cgroups import find_own_group
from roost.launchers.agent.limits.limits import Limits
from roost.launchers.agent.machine.sessions import OwnSession
from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.daemon.private_files import runtime_dir
from roost.launchers.daemon.process import is_running
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings, Enforcement
from roost.launchers.protocol.messages import (
    AgentEvent,
    Connection,
    KernelProcess,
    Launch,
    Lease,
    Owner,
    Reserve,
)
from roost.placement.model import Request
from roost.testing.deadlines import allow_s


def no_limits() -> Limits:
    """Return a `Limits` that enforces nothing, as if the cluster manager enforced the limits."""
    return Limits(
        "test",
        Enforcement(),
        OwnSession(),
        cpus=1,
        own_group=find_own_group(),
        list_others=list,
        on_near=print,
    )


async def as_it_is(launch: Launch, lease: Lease) -> tuple[Launch, tuple[str, ...]]:
    """Prepare a launch for `Kernels`: change nothing, and give it no devices."""
    return launch, ()


SETTINGS = AgentSettings(cpus=4, memory_bytes=1000, gpus=2, idle_exit_s=60, divides_machine=True)


class Session:
    """A connection to the agent, and the events received from it."""

    def __init__(self, client: AgentClient, events: asyncio.Queue[AgentEvent]) -> None:
        self.client = client
        self.events = events

    async def reserve(self, name: str, *, linger_s: float = 10, **wish: Any) -> str:
        owner = Owner(user="ada", application="test")
        device_ids, is_granted = wish.pop("device_ids", ()), wish.pop("is_granted", False)
        launch = wish.pop("launch", None)
        lease = Lease(
            id=f"roost:{name}:1", kernel_id=name, owner=owner, request=Request(**wish), device_ids=device_ids
        )
        reserve = Reserve(lease=lease, linger_s=linger_s, is_granted=is_granted, launch=launch)
        return (await self.client.reserve(reserve)).id

    async def launch(self, name: str, *words: Any, **options: Any) -> KernelProcess:
        """Launch a kernel. The arguments are those of `build_launch`."""
        return await self.client.launch(self.build_launch(name, *words, **options))

    def build_launch(
        self,
        name: str,
        argv: tuple[str, ...] = TINY_ARGV,
        *,
        launch_id: str | None = None,
        lease_id: str | None = None,
        connection: Connection | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        deadline_s: float = 20,
    ) -> Launch:
        return Launch(
            launch_id=launch_id or uuid.uuid4().hex,
            lease_id=lease_id or f"roost:{name}:1",
            kernel_id=name,
            argv=argv,
            env={
                "PATH": os.environ["PATH"],
                "ROOST_RUNTIME_DIR": os.environ["ROOST_RUNTIME_DIR"],
                **(env or {}),
            },
            cwd=cwd,
            connection=connection or Connection(key="k"),
            deadline_s=deadline_s,
        )

    async def until(self, kind: str) -> AgentEvent:
        """Return the next event of that kind, and drop the events before it."""
        while True:
            event = await asyncio.wait_for(self.events.get(), allow_s(60))
            if event.kind == kind:
                return event


@asynccontextmanager
async def agent_session(settings: AgentSettings = SETTINGS) -> AsyncIterator[Session]:
    """Open a session with the agent, and close it at the end. Start an agent if none lives."""
    events: asyncio.Queue[AgentEvent] = asyncio.Queue()
    client = AgentClient(*await find_or_start_agent(settings), on_event=events.put_nowait)
    await client.connect()
    try:
        yield Session(client, events)
    finally:
        await client.close()


async def end_agent(settings: AgentSettings = SETTINGS) -> None:
    """Release all leases and end the agent."""
    async with agent_session(settings) as session:
        for lease in (await session.client.holdings()).leases:
            await session.client.release(lease.id)
        await session.client.leave()


def agent_pid() -> int:
    """Return the pid of the running agent."""
    announcement = read_announcement(agent_folder(runtime_dir()))
    assert announcement is not None, "no agent is running"
    return int(announcement["pid"])


def alive(process: KernelProcess) -> bool:
    """True if the kernel runs."""
    return is_running(process.pid, process.process_started_at)
