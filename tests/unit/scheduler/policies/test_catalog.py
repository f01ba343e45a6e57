"""Shipped policies are kept between decisions, and adapt to recent requests."""

from __future__ import annotations

from collections.abc import Mapping

from kit.fakes.client_policies import CLUSTER, HALF, policies
from roost.placement import NOWHERE, Decision, Request, Snapshot, get_policy
from roost.scheduler.config.settings import Settings
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.recent_requests import RecentRequests


async def test_the_same_object_serves_every_decision() -> None:
    async with policies() as found:
        for name in ("pack", "balanced"):
            await found.decide(name, HALF, CLUSTER)
        assert found.get("pack") is found.get("pack")


async def test_shipped_policies_adapt_to_recent_requests() -> None:
    recent = RecentRequests(None, clock=lambda: 0.0)
    found = PolicyCatalog(Settings(), recent)
    await found.decide("balanced", HALF, CLUSTER)
    before = found.get("balanced")
    for _ in range(19):
        recent.note(HALF)
    await found.decide("balanced", HALF, CLUSTER)
    assert found.get("balanced") is before
    recent.note(HALF)
    decision = await found.decide("balanced", HALF, CLUSTER)
    assert found.get("balanced") is not before
    assert decision.placement is not None
    assert "fragmentation" in decision.placement.terms


class CountingPack:
    """`pack`, which says in its decisions how many nodes it was asked about, in all calls."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        self.asked.append(len(snapshot))
        decision = get_policy("pack").place(request, snapshot, avoid=avoid)
        return decision.changed_to(fallback=str(self.asked))


async def test_a_policy_is_not_asked_about_types_that_nobody_knows() -> None:
    """Its process would get the whole snapshot again, and it may fail without any node."""
    grows, too_large = CLUSTER.with_node_types((), may_grow=True), Request(cpus=1_000)
    async with policies(counting=CountingPack()) as found:
        await found.decide("counting", too_large, grows)
        decision = await found.decide("counting", too_large, grows)
    assert decision.fallback == "[3, 3]"
    assert decision.may_grow
    assert not decision.is_never
