"""The environment of an embedded cluster's clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import embedded
import pytest


@pytest.fixture(autouse=True)
def no_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a cluster without daemons in place of both kinds."""

    @contextmanager
    def start(environment: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(address="127.0.9.2:1")

    for backend in ("ray", "dask"):
        monkeypatch.setitem(embedded._CLUSTERS, backend, start)  # type: ignore[arg-type]
        monkeypatch.setitem(embedded._WHY_NOT, backend, lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [None, "token"])
def test_ray_and_its_drivers_use_no_token_of_the_user(
    mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with embedded.embedded("ray", tmp_path):
        assert (os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_MODE"]) == ("127.0.9.2:1", "disabled")
    assert "RAY_ADDRESS" not in os.environ
    assert os.environ.get("RAY_AUTH_MODE") == mode


def test_the_users_cluster_is_named_again_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://head:8786")
    with embedded.embedded("dask", tmp_path):
        assert os.environ["DASK_SCHEDULER_ADDRESS"] == "127.0.9.2:1"
    assert os.environ["DASK_SCHEDULER_ADDRESS"] == "tcp://head:8786"
