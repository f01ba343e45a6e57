"""A private world for each fault test, ended in an orderly manner and checked for leftovers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from contention import SCHEDULERS
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from leftovers import private_runtime_dir
from world import settle

import roost
from roost.scheduler.client.client import Client


@pytest.fixture
def world(runtime_dir: Path) -> Iterator[Path]:
    yield runtime_dir
    settle(runtime_dir)
    agent = runtime_dir / "agent"
    if agent.exists():
        assert not list((agent / "kernels").iterdir()), "files of kernels left"
        assert not list((agent / "leases").iterdir()), "leases left"


@pytest.fixture
def client(world: Path) -> Iterator[Client]:
    connected = roost.connect("local", gpus=2)
    yield connected
    connected.close()


@pytest.fixture
def roost_by_default(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels of the ordinary `python3` kernelspec start through roost."""
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "roost")
    KernelProvisionerFactory.clear_instance()  # it has read the variable once, perhaps in an earlier test
    yield
    KernelProvisionerFactory.clear_instance()


@pytest.fixture
def homes() -> Iterator[list[str]]:
    """A runtime folder for each user's service."""
    with ExitStack() as stack:
        folders = [stack.enter_context(private_runtime_dir()) for _ in range(SCHEDULERS)]
        yield folders
        for folder in folders:
            settle(Path(folder))
