"""The address of the Dask scheduler to join, found without any connection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roost.placement import Request
from roost.scheduler.backends.dask.join import check, resolve
from roost.scheduler.backends.dask.settings import RoostDaskBackend
from roost.scheduler.errors import BackendUnavailable, ConfigError

dask = pytest.importorskip("dask", reason="Dask is not installed: pip install '.[dask]'")


@pytest.fixture(autouse=True)
def no_cluster_is_configured() -> None:
    with dask.config.set({"scheduler-address": None, "distributed.comm.require-encryption": None}):
        yield


def test_the_settings_come_first_then_dasks_configuration_then_the_last_one() -> None:
    assert resolve(RoostDaskBackend(), "tcp://last:1") == "tcp://last:1"
    with dask.config.set({"scheduler-address": "tcp://configured:1"}):
        assert resolve(RoostDaskBackend(), "tcp://last:1") == "tcp://configured:1"
        assert resolve(RoostDaskBackend(address="tcp://set:1"), "tcp://last:1") == "tcp://set:1"
    with pytest.raises(ConfigError, match="there is no Dask cluster to join: give its scheduler's address"):
        resolve(RoostDaskBackend())


def test_the_scheme_is_what_the_settings_imply() -> None:
    assert resolve(RoostDaskBackend(address="here:8786")) == "tcp://here:8786"
    assert resolve(RoostDaskBackend(address="here:8786", tls_ca_file="ca.pem")) == "tls://here:8786"
    assert resolve(RoostDaskBackend(address="tcp://here:8786", tls_ca_file="ca.pem")) == "tcp://here:8786"
    with dask.config.set({"distributed.comm.require-encryption": True}):
        assert resolve(RoostDaskBackend(address="here:8786")) == "tls://here:8786"
    assert resolve(RoostDaskBackend(address="tcp://[::1]:8786")) == "tcp://[::1]:8786"


@pytest.mark.parametrize(
    "address", ["here", "tcp://here", "ws://here:1", "http://here:8787", "tcp://:1", ":1"]
)
def test_other_texts_are_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a Dask scheduler: give tcp://host:port"):
        resolve(RoostDaskBackend(address=address))


def test_scheduler_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scheduler.json"
    with pytest.raises(BackendUnavailable, match=r"cannot be read: No such file.*is the cluster running\?"):
        resolve(RoostDaskBackend(address=str(file)))
    file.write_text(json.dumps({"address": "tls://there:8786", "workers": {}}))
    assert resolve(RoostDaskBackend(address=str(file))) == "tls://there:8786"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(RoostDaskBackend(address="~/scheduler.json")) == "tls://there:8786"
    (other := tmp_path / "named otherwise").write_text(file.read_text())
    assert resolve(RoostDaskBackend(address=str(other))) == "tls://there:8786"
    file.write_text("[]")
    with pytest.raises(ConfigError, match="is no Dask scheduler file: it has no address"):
        resolve(RoostDaskBackend(address=str(file)))


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        ("tcp://127.0.0.1:1", BackendUnavailable, "nobody listens there"),
        ("http://127.0.0.1:1", ConfigError, "is no address of a Dask scheduler"),
        ("", BackendUnavailable, "there is no Dask cluster to join"),
    ],
)
def test_a_new_kernelspec_is_told_of_a_wrong_address(address: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check(RoostDaskBackend(address=address), Request())
