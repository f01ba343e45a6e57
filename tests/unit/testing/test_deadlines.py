"""Deadlines of tests grow with the load, within bounds."""

from __future__ import annotations

import os

import pytest

from roost.testing.deadlines import allow_s


@pytest.mark.parametrize(
    ("load", "cpus", "allowed_s"), [(0, 2, 5), (2, 2, 5), (8, 2, 20), (8, 16, 5), (500, 2, 50)]
)
def test_a_deadline_grows_with_the_load(
    load: float, cpus: int, allowed_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    assert allow_s(5) == allowed_s
