"""The environment of every test, its runtime folder, and what a run of pytest prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kit.clusters.dask.shared_cluster import dask_cluster, dask_tls_cluster  # noqa: F401 - fixtures
from kit.clusters.docker.shared_cluster import docker_cluster, podman_cluster  # noqa: F401 - fixtures
from kit.clusters.kubernetes.shared_cluster import kubernetes_cluster  # noqa: F401 - a fixture
from kit.clusters.ray.shared_cluster import ray_cluster  # noqa: F401 - a fixture
from kit.clusters.ssh.shared_cluster import ssh_hosts  # noqa: F401 - a fixture
from kit.clusters.yarn.shared_cluster import yarn_cluster  # noqa: F401 - a fixture
from kit.machine.progress import Progress, hide_start_of_workers
from roost.testing.clusters.raylets import WITHOUT_TOKEN
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import private_runtime_dir

pytest_plugins = ["kit.fixtures.backends", "kit.fixtures.faults"]
# No limits on time, which a busy machine exceeds. The same inputs in each run, except in those of `make long`.
settings.register_profile(
    "roost",
    deadline=None,
    derandomize="ROOST_MESSAGES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("roost")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    plugins = config.pluginmanager
    if not hasattr(config, "workerinput"):
        plugins.register(Progress(plugins.get_plugin("terminalreporter")))
        hide_start_of_workers(plugins.get_plugin("terminaldistreporter"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let the limit of pytest-timeout grow with the load, as other deadlines do. A marker's limit comes first."""
    marker = item.get_closest_marker("timeout")
    limit_s = marker.args[0] if marker else item.config.getoption("timeout") or item.config.getini("timeout")
    item.add_marker(pytest.mark.timeout(allow_s(float(limit_s))), append=False)
    return (yield)


@pytest.fixture(scope="session", autouse=True)
def private_environment() -> Iterator[None]:
    """Keep the tests away from the user's configuration, Ray's token and running agent. Write bytecode, as users do."""
    with private_runtime_dir() as folder, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KERNEL_")]:
            patch.delenv(name)
        for name in ("JPY_PARENT_PID", "PYTHONDONTWRITEBYTECODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        for name, value in WITHOUT_TOKEN.items():
            patch.setenv(name, value)
        jupyter = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        for name in (*jupyter, "XDG_STATE_HOME"):
            patch.setenv(name, f"{folder}/{name.lower()}")
        yield


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """Yield the test's ROOST_RUNTIME_DIR. Fail if a process still uses it 5 s after the test's end."""
    with private_runtime_dir() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def module_runtime_dir() -> Iterator[Path]:
    """Yield one ROOST_RUNTIME_DIR for a whole module, for tests that share an agent to save time."""
    with private_runtime_dir() as folder:
        yield Path(folder)
