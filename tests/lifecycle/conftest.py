"""A real service and agents for each module, on each backend, and the proof that every test gave back what it took."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from dask_nodes import environment
from jupyter_client.kernelspec import KernelSpecManager
from managers import kernelspecs
from world import settle

from roost.scheduler.client.client import connect, disconnect

BACKENDS = ("local", "ray", "dask", "dask_tls")
"""The last is Dask with TLS."""
FREED_S = 5.0
"""A cluster manager shows a moment late what was given back."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a `backend` on all of them, or on the one alone of which a marker says why."""
    if "backend" in metafunc.fixturenames:
        marked = [
            name for name in BACKENDS if metafunc.definition.get_closest_marker(f"{_manager(name)}_only")
        ]
        metafunc.parametrize("backend", marked or BACKENDS, indirect=True, scope="module")


def _manager(backend: str) -> str:
    return backend.partition("_")[0]


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Its name; where that is a cluster's, services that start find the cluster in their environment."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "ray":
            patch.setenv("RAY_ADDRESS", request.getfixturevalue("ray_cluster").address)
        elif request.param.startswith("dask"):
            for name, value in environment(request.getfixturevalue(f"{request.param}_cluster")).items():
                patch.setenv(name, value)
        yield _manager(request.param)


@pytest.fixture(scope="module")
def world(backend: str, module_runtime_dir: Path) -> Iterator[Path]:
    """The runtime folder; whatever runs in it is ended in order when the module is done. The agents of all nodes run.

    Agents on the nodes of a cluster have a folder of their own, and go with the cluster.
    """
    connect(backend).up().result(100)
    yield module_runtime_dir
    disconnect()
    settle(module_runtime_dir)


@pytest.fixture
def specs_of(backend: str, world: Path, tmp_path: Path) -> Iterator[Callable[..., KernelSpecManager]]:
    """Makes kernelspecs, as `managers.kernelspecs` does; at the end there is no kernel and nothing promised."""
    yield partial(kernelspecs, tmp_path, backend=backend)
    # jupyter_core keeps an event loop for each thread that called a blocking manager.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    service = connect(backend)
    assert service.kernels().result(10) == []
    deadline = time.monotonic() + FREED_S
    while held := [node for node in service.nodes().result(10) if node["cpus_promised"]]:
        assert time.monotonic() < deadline, f"promised to nobody: {held}"


@pytest.fixture
def specs(specs_of: Callable[..., KernelSpecManager]) -> KernelSpecManager:
    """Kernelspecs with `roosted`, an ipykernel."""
    return specs_of()
