"""A cluster manager whose answers are late, missing or wrong, for the contract suite.

The faults lie between roost and a manager, real or fake: they change what the manager's adapter returns. There is one
class for each shape of backends. Each patches a class, so that it works on every backend that is opened afterwards:

    Faults ─┬─ LocalFaults    an agent that is its own manager
            ├─ NodeFaults     a manager with one agent per node
            └─ PodFaults      a manager that runs each kernel in a pod
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from roost.launchers.protocol.messages import AgentEvent, Holdings, Lease
from roost.scheduler.backends.agent_calls import AgentListener, Agents

AWAY = "the test has cut it off"
"""Why an agent or a manager does not answer."""


class Faults(ABC):
    """The faults of one test. They begin with `install`, and end with the test."""

    lacks: Mapping[str, str] = {}
    """Why a case cannot be made with this shape of backends, by the name of the method that would make it."""

    def __init__(self) -> None:
        self.hidden: set[str] = set()
        """The ids of leases that the manager does not show."""
        self.shown: dict[str, Lease] = {}
        """Leases that the manager shows as held, whether they are or not."""
        self.ended: dict[str, str] = {}
        """Why the manager shows leases as lost, by lease id."""
        self.released: list[str] = []
        """The ids of the leases that the manager was asked to take back."""
        self.is_claimed = asyncio.Event()
        """Set once a claim waits for `answer`."""
        self.may_end_gap = True
        """False while roost has not looked as often as a gap lasts."""
        self._listeners: list[AgentListener] = []
        self._answers: asyncio.Event | None = None

    def need(self, fault: str) -> None:
        """Skip the test if this shape of backends cannot have the fault."""
        if fault in self.lacks:
            pytest.skip(self.lacks[fault])

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Begin to record who listens to agents, and to change what the manager returns."""
        listen = Agents.listen

        def record(agents: Agents, listener: AgentListener) -> None:
            self._listeners.append(listener)
            listen(agents, listener)

        patch.setattr(Agents, "listen", record)
        self.change(patch)

    def report(self, endpoint: str, event: AgentEvent | None) -> None:
        """Report an event of the agent at this endpoint to all services, or with None that its connection is lost."""
        for listener in self._listeners:
            listener(endpoint, event)

    def hold_answers(self) -> None:
        """Let the manager answer claims only after `answer` from now on. It may grant them before."""
        self._answers = asyncio.Event()

    def answer(self) -> None:
        """Let the manager answer all claims."""
        if self._answers is not None:
            self._answers.set()

    async def wait_for_answer(self) -> None:
        """Wait, in a claim, until the manager may answer."""
        if self._answers is not None:
            self.is_claimed.set()
            await self._answers.wait()

    @abstractmethod
    def change(self, patch: pytest.MonkeyPatch) -> None:
        """Change what the manager returns."""

    @abstractmethod
    def gap(self, lease: Lease) -> AbstractAsyncContextManager[None]:
        """Let nobody show the lease in the block, for a shorter time than its grace.

        The block must not end before `may_end_gap`.
        """

    def show(self, lease: Lease) -> None:
        """Let the manager show a lease as held, in readings and as news, although it is released."""
        self.shown[lease.id] = lease

    def hide(self, lease: Lease) -> None:
        """Let the manager never show the lease again, as if it was removed."""
        self.hidden.add(lease.id)

    def end(self, lease: Lease, reason: str) -> None:
        """Let the manager take the lease back, and show it as ended in all readings from now on."""
        self.ended[lease.id] = reason

    def move(self, lease: Lease, node_id: str) -> None:
        """Let the manager show the lease on another node from now on."""
        raise NotImplementedError


def without(held: Holdings, lease_ids: Container[str]) -> Holdings:
    """Return an agent's answer without these leases and their kernels."""
    return replace(
        held,
        leases=tuple(lease for lease in held.leases if lease.id not in lease_ids),
        kernels=tuple(kernel for kernel in held.kernels if kernel.lease_id not in lease_ids),
    )
