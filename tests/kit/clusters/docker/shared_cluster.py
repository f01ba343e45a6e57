"""A Docker engine for the whole run, started by the first test that asks for it.

All tests share it and leave it as they found it. A test that kills it starts its own `DockerEngine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.docker_engine import IMAGE, DockerEngine, Program, leftovers, why_not

HOME = "/tmp"
"""The home folder of kernels in containers."""


def cluster_settings(engine: DockerEngine, folder: Path) -> dict[str, Any]:
    """Return the settings of a backend on this engine, with two declared T4; Podman gives no GPUs.

    The backend's file is in `folder`.
    """
    return {
        "address": engine.address,
        "image": IMAGE,
        "gpus": 2 if engine.program == "dockerd" else 0,
        "gpu_model": "T4",
        "identity_file": str(folder / "identity.json"),
    }


@pytest.fixture(scope="session")
def docker_cluster(private_environment: None) -> Iterator[DockerEngine]:
    """Start an engine with the image of kernels. Its CPUs and memory are this machine's."""
    yield from started("dockerd")


@pytest.fixture(scope="session")
def podman_cluster(private_environment: None) -> Iterator[DockerEngine]:
    """Start Podman's service as root, with the image of kernels."""
    yield from started("podman")


@pytest.fixture(scope="session")
def rootless_cluster(private_environment: None) -> Iterator[DockerEngine]:
    """Start Podman's service as a user without rights, with the image of kernels."""
    yield from started("rootless")


def started(program: Program) -> Iterator[DockerEngine]:
    """Yield an engine with the image of kernels, or skip the test. Check that the tests have left nothing in it."""
    if reason := why_not(program):
        pytest.skip(reason)
    with DockerEngine(program) as engine:
        yield engine
        left = engine.objects()
    assert not left, "the tests have left behind:\n" + "\n".join(left)
    left = leftovers(engine.folder)
    assert not left, "the engine has left behind:\n" + "\n".join(left)
