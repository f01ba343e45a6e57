"""A real service and agent for each module, and the proof that every test gave back what it took."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from managers import kernelspecs
from world import settle

from roost.scheduler.client import connect, disconnect


@pytest.fixture(scope="module")
def world(module_runtime_dir: Path) -> Iterator[Path]:
    """The runtime folder; whatever runs in it is ended in order when the module is done."""
    yield module_runtime_dir
    disconnect()
    settle(module_runtime_dir)


@pytest.fixture
def specs(world: Path, tmp_path: Path) -> Iterator[KernelSpecManager]:
    """Kernelspecs with `roosted`, an ipykernel; at the end there is no kernel and nothing promised."""
    yield kernelspecs(tmp_path)
    # jupyter_core keeps an event loop for each thread that called a blocking manager.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    service = connect()
    assert service.kernels().result(10) == []
    assert all(node["cpus_promised"] == 0 for node in service.nodes().result(10))
