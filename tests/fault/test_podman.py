"""kill -9 of parts under kernels in containers of Podman, whose containers need no engine to live."""

from __future__ import annotations

import pytest

from kit.clusters.docker.faults import DockerWorld

pytestmark = pytest.mark.fault


@pytest.fixture(params=["podman_engine", "rootless_engine"], ids=["root", "no root"])
def engine_of_world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_the_scheduler_service(docker_world: DockerWorld) -> None:
    await docker_world.outlives_service()


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
