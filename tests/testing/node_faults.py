"""The faults of a manager with one agent per node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import Holdings, Lease
from roost.scheduler.backends.agent_per_node import outage
from roost.scheduler.backends.agent_per_node.manager import has_claim

from .faults import Faults, without

_GAP = ("lost", "lost", "shown", "missing", "missing", "missing", "missing")
"""The state of a claim in each reading of its node during a gap, one after the other.

While it is `missing`, the manager finds it if it is asked. While it is `lost`, the manager does not find it. Two such
readings are within the grace.
"""
_LEFT = "a-node-that-has-left"


class NodeFaults(Faults):
    """Faults of a manager with one agent per node. `manager` is its class, a `ClusterManager`."""

    lacks = {
        "move": "a claim is tied to the agent of its node, and the kernel cannot follow it to another one"
    }

    def __init__(self, manager: type[Any]) -> None:
        super().__init__()
        self._manager = manager
        self._seen: dict[str, Lease] = {}
        self._gaps: dict[str, Iterator[str]] = {}
        self._gap: str | None = None
        """The present step of the gap; None without one."""

    def change(self, patch: pytest.MonkeyPatch) -> None:
        claims, unclaimed, claim, release = (
            getattr(self._manager, name) for name in ("claims", "unclaimed", "claim", "release")
        )

        async def read(manager: Any) -> Sequence[Lease]:
            claimed = {lease.id: lease for lease in await claims(manager)}
            self._seen.update(claimed)
            found = {id_: lease for id_, lease in claimed.items() if id_ not in self.hidden} | self.shown
            for id_ in self.ended.keys() & self._seen.keys():
                found[id_] = replace(self._seen[id_], node_id=_LEFT, state="lost", reason=self.ended[id_])
            return list(found.values())

        async def look_up(manager: Any, lease: Lease) -> bool:
            is_lost = lease.id in self._gaps and self._gap == "lost"
            return not is_lost and await has_claim(manager, lease)

        def find_unclaimed(manager: Any, leases: Sequence[Lease], node: Any) -> Sequence[Lease]:
            missing = {lease.id for lease in unclaimed(manager, leases, node)} - self.shown.keys()
            missing |= {lease.id for lease in leases} & self._hide_now(leases)
            return [lease for lease in leases if lease.id in missing]

        async def grant(manager: Any, *asked: Any, **how: Any) -> Any:
            device_ids = await claim(manager, *asked, **how)
            await self.wait_for_answer()
            return device_ids

        async def give_back(manager: Any, lease: Lease) -> None:
            self.released.append(lease.id)
            await release(manager, lease)

        holdings = AgentClient.holdings

        async def list_held(agent: AgentClient) -> Holdings:
            """Return the holdings without ended leases: their agent has left with its node."""
            held = await holdings(agent)
            return without(held, self.ended)

        patch.setattr(AgentClient, "holdings", list_held)
        for name, changed in (
            ("claims", read),
            ("unclaimed", find_unclaimed),
            ("claim", grant),
            ("release", give_back),
        ):
            patch.setattr(self._manager, name, changed)
        patch.setattr(outage, "has_claim", look_up)

    def _hide_now(self, leases: Collection[Lease]) -> set[str]:
        """Return the ids of the leases whose claims this reading of a node lacks."""
        hidden = set(self.hidden)
        for lease_id in {lease.id for lease in leases} & self._gaps.keys():
            self._gap = next(self._gaps[lease_id], None)
            if self._gap is None:
                self.may_end_gap = True
            elif self._gap != "shown":
                hidden.add(lease_id)
        return hidden

    def end(self, lease: Lease, reason: str) -> None:
        """Let the node of the lease leave with its agent, but show the claim in all readings from now on."""
        super().end(lease, reason)
        self.report("", None)

    @asynccontextmanager
    async def gap(self, lease: Lease) -> AsyncIterator[None]:
        """Let readings of the node lack the claim as in `_GAP`. The next one has it again."""
        self._gaps[lease.id], self.may_end_gap = iter(_GAP), False
        yield
