"""kill -9 of parts under kernels in containers of Podman, whose containers need no engine to live."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.clusters.docker.faults import DockerWorld
from kit.clusters.docker_engine import DockerEngine, why_not


@pytest.fixture(scope="module")
def podman_engine(private_environment: None) -> Iterator[DockerEngine]:
    if reason := why_not("podman"):
        pytest.skip(reason)
    with DockerEngine("podman") as engine:
        yield engine


@pytest.fixture
def engine_of_world() -> str:
    return "podman_engine"


async def test_the_engine(docker_world: DockerWorld) -> None:
    """Kernels live, also once the engine is back. No kernel starts meanwhile."""
    notebook = await docker_world.open()
    await docker_world.outlives_absence(notebook)
    await docker_world.lives(notebook)
    assert await notebook.value("mine") == "42"
    await docker_world.restart(notebook)
    await docker_world.lives(notebook)


async def test_a_container_that_is_removed_by_hand(docker_world: DockerWorld) -> None:
    notebook = await docker_world.open()
    docker_world.engine.run("rm", "--force", await docker_world.container(notebook))
    assert "stopped" in await docker_world.ended(notebook, 60)
    await docker_world.restart(notebook)
    await docker_world.lives(notebook)
