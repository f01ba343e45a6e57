"""Which groups the guard of new nodes removes."""

from __future__ import annotations

from typing import Any

import pytest

from roost.scheduler.backends.ray.guard import Guard

WAITS, PINNED = {"GPU": 0.5}, {"GPU": 0.5, "node:10.0.0.7": 0.0001}


def entry(name: str, state: str, bundle: dict[str, float]) -> dict[str, Any]:
    return {"name": name, "state": state, "bundles": {0: bundle}}


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setattr(Guard, "_watch", lambda self: None)
    return Guard("roost:", "node:", 30.0, 2.0, 30)


def test_a_waiting_group_goes_when_nobody_renews_it(guard: Guard) -> None:
    groups = [entry("roost:k", "PENDING", WAITS)]
    assert guard.find_unwanted(groups, 100.0) == ([], 1)  # the guard sees it for the first time
    assert guard.find_unwanted(groups, 130.0) == ([], 1)
    assert guard.find_unwanted(groups, 130.1) == (["roost:k"], 0)


def test_a_renewed_group_stays(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [entry("roost:k", "PENDING", WAITS)]
    guard.find_unwanted(groups, 100.0)
    monkeypatch.setattr("time.monotonic", lambda: 125.0)
    guard.renew(["roost:k"])
    assert guard.find_unwanted(groups, 150.0) == ([], 1)
    assert guard.find_unwanted(groups, 155.1) == (["roost:k"], 0)


def test_a_group_with_a_kernel_stays_until_its_node_ends(guard: Guard) -> None:
    assert guard.find_unwanted([entry("roost:k", "CREATED", WAITS)], 100.0) == ([], 1)
    assert guard.find_unwanted([entry("roost:k", "CREATED", WAITS)], 1_000.0) == ([], 1)
    assert guard.find_unwanted([entry("roost:k", "RESCHEDULING", WAITS)], 1_001.0) == (["roost:k"], 0)


def test_a_created_group_goes_if_no_agent_has_noted_its_lease(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service ended while the new node came."""
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    guard.renew(["roost:k", "roost:noted"])
    groups = [entry("roost:k", "CREATED", WAITS), entry("roost:noted", "CREATED", WAITS)]
    guard.settle(["roost:noted"])
    assert guard.find_unwanted(groups, 130.0) == ([], 2)
    assert guard.find_unwanted(groups, 130.1) == (["roost:k"], 1)


@pytest.mark.parametrize(
    "other",
    [
        entry("roost:k", "PENDING", PINNED),
        entry("other", "PENDING", WAITS),
        entry("roost:k", "REMOVED", WAITS),
    ],
)
def test_other_groups_are_left_alone(guard: Guard, other: dict[str, Any]) -> None:
    guard.find_unwanted([other], 100.0)
    assert guard.find_unwanted([other], 1_000.0) == ([], 0)
