"""The faults of an agent that is its own manager, as on one machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import Holdings, Lease, Reserve
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.errors import BackendUnavailable

from .faults import AWAY, Faults, without


class LocalFaults(Faults):
    """Faults of an agent that is its own manager, as on one machine: its ledger has the leases."""

    lacks = {
        "end": "an agent forgets a lease with its end, so that it never shows an ended one",
        "move": "one machine has no other node",
    }

    def __init__(self) -> None:
        super().__init__()
        self._is_unreachable = False

    def change(self, patch: pytest.MonkeyPatch) -> None:
        client, holdings, reserve, release = (
            Agents.client,
            AgentClient.holdings,
            AgentClient.reserve,
            AgentClient.release,
        )

        async def find(agents: Agents, address: Any) -> AgentClient:
            if self._is_unreachable:
                raise BackendUnavailable(AWAY)
            return await client(agents, address)

        async def read(agent: AgentClient) -> Holdings:
            held = without(await holdings(agent), self.hidden)
            others = tuple(lease for lease in held.leases if lease.id not in self.shown)
            return replace(held, leases=(*others, *self.shown.values()))

        async def claim(agent: AgentClient, request: Reserve) -> Lease:
            granted = await reserve(agent, request)
            await self.wait_for_answer()
            return granted

        async def give_back(agent: AgentClient, lease_id: str) -> None:
            self.released.append(lease_id)
            await release(agent, lease_id)

        patch.setattr(Agents, "client", find)
        patch.setattr(AgentClient, "holdings", read)
        patch.setattr(AgentClient, "reserve", claim)
        patch.setattr(AgentClient, "release", give_back)

    @asynccontextmanager
    async def gap(self, lease: Lease) -> AsyncIterator[None]:
        """Let the agent be unreachable in the block."""
        self._is_unreachable = True
        self.report("", None)
        yield
        self._is_unreachable = False

    def hide(self, lease: Lease) -> None:
        """Replace the agent by a successor without the lease."""
        super().hide(lease)
        self.report("", None)
