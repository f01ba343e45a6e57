"""The error texts when the Kubernetes backend cannot be opened."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from roost.placement import Request
from roost.scheduler.backends.kubernetes import backend
from roost.scheduler.backends.kubernetes.api import Api
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.errors import BackendUnavailable, ConfigError
from roost.testing.deadlines import allow_s


def test_a_kubeconfig_file_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "config")
    with pytest.raises(ConfigError, match="correct the address of the backend"):
        Api(missing, "").request("GET", "/version")
    monkeypatch.setenv("KUBECONFIG", missing)
    with pytest.raises(ConfigError, match="correct KUBECONFIG"):
        Api("", "").request("GET", "/version")


def write_kubeconfig(folder: Path, server: str) -> str:
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [context],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (folder / "config").write_text(json.dumps(config))
    return str(folder / "config")


async def test_a_cluster_that_does_not_answer_leaves_no_key_pair(tmp_path: Path) -> None:
    kubeconfig, pair = write_kubeconfig(tmp_path, "https://127.0.0.1:1"), tmp_path / "state" / "pair.json"
    cluster = backend.build_cluster(RoostKubernetesBackend(address=kubeconfig, identity_file=str(pair)))
    try:
        with pytest.raises(BackendUnavailable):
            await cluster.join()
    finally:
        await cluster.close()
    assert not pair.parent.exists()


def test_a_check_of_pods_waits_a_short_time_for_a_silent_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_CHECK_S", 0.5)
    pair = tmp_path / "state" / "pair.json"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kubeconfig = write_kubeconfig(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        settings = RoostKubernetesBackend(address=kubeconfig, image="a", identity_file=str(pair))
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="does not answer"):
            backend.check(settings, Request())
        assert time.monotonic() - began < allow_s(10)
    assert not pair.parent.exists()
