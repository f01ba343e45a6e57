"""The pure parts of the Docker engine: why it cannot start, its image's name in the cache, its script, its remains."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from kit.clusters.docker_engine import build, engine, leftovers, podman, why_not
from kit.clusters.docker_engine.start_script import network, write_script


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be root on Linux, with all programs and an empty cache."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(build, "_may_make_namespaces", lambda: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_an_engine_needs_root_and_an_image(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(why_not()).endswith("`make docker` (a minute, once)")
    build.cache().mkdir(parents=True)
    build.image_file().touch()
    assert why_not() is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "a Docker engine of the tests' own needs Linux and root"


def test_the_missing_packages_are_named(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "dockerd" else f"/bin/{name}")
    assert "apt-get install --no-install-recommends busybox-static docker.io" in str(why_not())


def test_podman_needs_its_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert podman.why_not(with_root=False) == (
        "Podman is not installed: apt-get install --no-install-recommends podman netavark runc slirp4netns uidmap"
    )
    script = write_script(Path("/tmp/docker-engine-x"), 7, "podman")
    assert "--root=/tmp/docker-engine-x/data" in script
    assert "dockerd --host" not in script


def test_root_without_namespaces_has_no_engine(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_may_make_namespaces", lambda: False)
    assert "namespaces" in str(why_not())


def test_an_engine_has_addresses_and_folders_of_its_own() -> None:
    script = write_script(Path("/tmp/docker-engine-x"), 7)
    assert network(7) == "10.248.7.0/24"
    assert "--host=unix:///tmp/docker-engine-x/docker.sock" in script
    assert "--cgroup-parent=/docker-engine-x" in script
    assert "/var/lib/docker" not in script


def test_only_the_remains_of_ended_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_BASE", tmp_path)
    monkeypatch.setattr(engine, "_CGROUPS", tmp_path / "no-groups")
    kept = engine._make_folder()
    ended = tmp_path / "docker-engine-ended"
    ended.mkdir()
    (ended / "owner.json").write_text(json.dumps({"pid": os.getpid(), "start_time": 1.0}))
    assert leftovers(ended) == [f"folder {ended}"]
    other = engine._make_folder()
    assert {*tmp_path.iterdir()} == {kept, other}
