"""What people read when the Kubernetes backend cannot begin."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from roost.scheduler.backends.kubernetes import backend
from roost.scheduler.backends.kubernetes.api import Api
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.errors import ConfigError
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
