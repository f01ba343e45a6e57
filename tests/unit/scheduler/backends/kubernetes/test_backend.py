"""What people read when the Kubernetes backend cannot begin."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from roost.scheduler.backends.kubernetes import backend
from roost.scheduler.backends.kubernetes.api import Api
from roost.scheduler.backends.kubernetes.cluster import KubernetesCluster
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.errors import BackendUnavailable, ConfigError
from roost.testing import backend_context


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "kubernetes",
        "roost.scheduler.backends.kubernetes.cluster",
        "roost.scheduler.backends.kubernetes.api",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(ConfigError, match="extra `kubernetes`"):
        backend.create(RoostKubernetesBackend(), backend_context(Agents(), tmp_path))


def test_a_kubeconfig_file_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "config")
    with pytest.raises(ConfigError, match="correct the address of the backend"):
        Api(missing, "").request("GET", "/version")
    monkeypatch.setenv("KUBECONFIG", missing)
    with pytest.raises(ConfigError, match="correct KUBECONFIG"):
        Api("", "").request("GET", "/version")


async def test_a_cluster_that_does_not_answer_leaves_no_key_pair(tmp_path: Path) -> None:
    server = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    config = {"current-context": "c", "clusters": [server], "contexts": [context], "users": [user]}
    kubeconfig, pair = tmp_path / "config", tmp_path / "state" / "pair.json"
    kubeconfig.write_text(json.dumps(config))
    cluster = KubernetesCluster(RoostKubernetesBackend(address=str(kubeconfig), identity_file=str(pair)))
    try:
        with pytest.raises(BackendUnavailable):
            await cluster.join()
    finally:
        await cluster.close()
    assert not pair.parent.exists()
