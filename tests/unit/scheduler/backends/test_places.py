"""The addresses of the cluster that a backend's settings name, before the backend asks the cluster anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.client.cluster_record import write_place
from roost.scheduler.client.service_folder import name_service
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError
from roost.testing.contexts import backend_context


def find_places(backend: str, **options: object) -> set[str]:
    """Return the places of a backend with these options and no file of settings."""
    spec = get_spec(backend)
    for package in spec.packages:
        pytest.importorskip(package, reason="the backend's own package is missing")
    _, settings = load_settings(backend, options, path=[])
    made: Backend = load_object(spec.create, backend)(settings, backend_context(Agents(), Path.home()))
    return {write_place(place) for place in made.places()} - {""}


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name no cluster by a variable or a file of this user."""
    for name in ("ray", "dask", "kubernetes", "yarn"):
        monkeypatch.delenv(get_spec(name).address_variable, raising=False)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("HOME", str(tmp_path))


async def test_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_places("ray", address="head:6379") == {"head:6379"}
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert find_places("ray") == {"other:6379"}
    with pytest.raises(ConfigError, match="Ray Client's address"):
        find_places("ray", address="ray://head:10001")


async def test_dask(tmp_path: Path) -> None:
    assert find_places("dask", address="tcp://Head:8786") == {"head:8786"}
    assert find_places("dask", address="head:8786") == {"head:8786"}
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tls://192.0.2.1:8786"}))
    assert find_places("dask", address=str(file)) == {"192.0.2.1:8786"}
    assert find_places("dask", address=str(tmp_path / "none.json")) == set()


async def test_kubernetes(tmp_path: Path) -> None:
    def describe(name: str, namespace: str) -> dict[str, object]:
        return {"name": name, "context": {"cluster": name, "user": "u", "namespace": namespace}}

    servers = {"one": "https://one:6443", "two": "https://two"}
    clusters = [{"name": name, "cluster": {"server": server}} for name, server in servers.items()]
    content = {
        "clusters": clusters,
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [describe("one", "a"), describe("two", "b")],
        "current-context": "one",
    }
    file = tmp_path / "config"
    file.write_text(json.dumps(content))
    assert find_places("kubernetes", address=str(file)) == {"one:6443/a"}
    assert find_places("kubernetes", address=str(file), namespace="c") == {"one:6443/c"}
    assert find_places("kubernetes", address=str(file), context="two") == {"two:443/b"}
    with pytest.raises(ConfigError):
        find_places("kubernetes", address=str(tmp_path / "none"))


async def test_yarn(tmp_path: Path) -> None:
    (tmp_path / "yarn-site.xml").write_text(
        "<configuration><property><name>yarn.resourcemanager.hostname</name><value>RM1</value></property>"
        "</configuration>"
    )
    assert find_places("yarn", address=str(tmp_path)) == {"rm1:8088"}
    assert find_places("yarn", address="http://rm1:8088,rm2:8088") == {"rm1:8088", "rm2:8088"}


async def test_hosts_of_ssh_are_no_cluster_with_a_place() -> None:
    """The options alone select the service: other hosts are another service, and no address leads to it."""
    assert find_places("ssh", hosts=["n1", "ssh://n2:22"]) == set()
    names = {
        name_service("ssh", options)
        for options in ({}, {"hosts": ["n1"]}, {"hosts": ["n2"]}, {"hosts_file": "/h"})
    }
    assert len(names) == 4
