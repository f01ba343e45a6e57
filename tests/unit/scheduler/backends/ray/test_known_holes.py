"""`roost doctor` warns of a Ray cluster whose version has a known hole."""

from __future__ import annotations

import pytest

from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.backends.ray import join
from roost.scheduler.backends.ray.known_holes import find_holes
from roost.scheduler.backends.ray.manager import RayManager
from roost.scheduler.backends.ray.settings import RoostRayBackend


@pytest.mark.parametrize("version", ["2.40.0", "2.51.2", "2.9.3", "1.13.0", "2.51.0rc1"])
def test_an_old_cluster_is_reported_with_what_to_do(version: str) -> None:
    (finding,) = find_holes(version)
    assert finding["level"] == "warning"
    assert finding["what"].startswith(
        f"this cluster has Ray {version}, and a page in Firefox or Safari can run code"
    )
    assert "(CVE-2025-62593)" in finding["what"]
    assert finding["do"] == "upgrade the cluster to Ray 2.52 or later"


@pytest.mark.parametrize("version", ["2.52.0", "2.52.1", "2.60.0", "2.100.0", "3.0.0.dev0", ""])
def test_a_new_or_unknown_version_is_not_reported(version: str) -> None:
    assert find_holes(version) == []


async def test_the_version_is_that_of_the_joined_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = RayManager(RoostRayBackend(), KeyPair("public", "secret"))
    monkeypatch.setattr(join, "_ray_version", "2.51.1")
    assert await manager.diagnose() == find_holes("2.51.1")
    await manager.close()
