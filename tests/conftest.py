"""What every test gets: an environment of its own, and a check that it leaves no process behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_nodes import dask_cluster, dask_tls_cluster  # noqa: F401 - fixtures
from leftovers import private_runtime_dir
from ray_nodes import ray_cluster  # noqa: F401 - a fixture


@pytest.fixture(scope="session", autouse=True)
def private_environment() -> Iterator[None]:
    """Neither the user's configuration nor their running agent is met, and neither is touched."""
    with private_runtime_dir() as folder, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KERNEL_")]:
            patch.delenv(name)
        patch.delenv("JPY_PARENT_PID", raising=False)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, f"{folder}/{name.lower()}")
        yield


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A ROOST_RUNTIME_DIR for one test, which fails if a process with it is there 5 s after its end."""
    with private_runtime_dir() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def module_runtime_dir() -> Iterator[Path]:
    """The same for a whole module, where bringing up an agent for each test would take too long."""
    with private_runtime_dir() as folder:
        yield Path(folder)
