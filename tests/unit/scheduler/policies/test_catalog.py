"""Shipped policies are kept between decisions, and adapt to recent requests."""

from __future__ import annotations

from kit.fakes.client_policies import CLUSTER, HALF, policies
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
