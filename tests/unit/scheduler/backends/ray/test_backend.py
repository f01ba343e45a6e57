"""The Ray backend without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.ray import join
from roost.scheduler.backends.ray.manager import create
from roost.scheduler.backends.ray.settings import RoostRayBackend
from roost.scheduler.errors import BackendUnavailable
from roost.testing import backend_context


@pytest.mark.parametrize(
    ("configured", "environment", "remembered", "asked"),
    [
        ("", "", "", ""),
        ("", "", "c:3", "c:3"),
        ("", "b:2", "c:3", "b:2"),
        ("a:1", "b:2", "c:3", "a:1"),
    ],
)
async def test_the_cluster_is_the_configured_one_else_that_of_ray_address_else_the_last_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: str,
    environment: str,
    remembered: str,
    asked: str,
) -> None:
    asked_for: list[str] = []

    def fake_join(address: str, **_: object) -> str:
        asked_for.append(address)
        raise BackendUnavailable("there is none")

    monkeypatch.setattr(join, "join", fake_join)
    monkeypatch.setenv("RAY_ADDRESS", environment)
    known = {"cluster": remembered, "agents": {}, "settings": ""}
    (tmp_path / "agents.json").write_text(json.dumps(known))
    backend = create(RoostRayBackend(address=configured), backend_context(Agents(), tmp_path))
    with pytest.raises(BackendUnavailable, match="there is none"):
        await backend.open()
    assert asked_for == [asked]
    await backend.close()
