"""kill -9 of each part under kernels in containers: which kernels live on, which end, and for which reason."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from pathlib import Path

from kit.clusters.docker.faults import DockerWorld
from kit.clusters.docker_engine import Registry
from kit.clusters.faults import say, until
from roost.scheduler.backends.docker.container_state import STOPPED, STOPPED_OR_KILLED
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import allow_s

WRITE = """
def write(path):
    try:
        open(path, "w").close()
    except OSError as problem:
        return problem.strerror
    return "written"
"""

ROUNDS = int(os.environ.get("ROOST_OUTAGES", "4"))
SEED = int(os.environ.get("ROOST_OUTAGES_SEED", time.time_ns() % 1_000_000))


async def test_the_agent(docker_world: DockerWorld) -> None:
    notebook = await docker_world.open()
    agent = min(docker_world.engine.contained(), key=lambda process: process.create_time())
    agent.kill()
    assert STOPPED_OR_KILLED in await docker_world.ended(notebook, 10)
    await docker_world.restart(notebook)
    await docker_world.lives(notebook)


async def test_a_container_removed_while_no_service_runs(docker_world: DockerWorld) -> None:
    notebook = await docker_world.open()
    container = await docker_world.container(notebook)
    docker_world.kill_service()
    docker_world.engine.run("rm", "--force", container)
    await asyncio.wait_for(notebook.manager.provisioner.wait(), allow_s(20))  # type: ignore[union-attr]
    await docker_world.restart(notebook)
    await docker_world.lives(notebook)


async def test_a_container_stopped_while_no_service_runs(docker_world: DockerWorld) -> None:
    notebook = await docker_world.open()
    container = await docker_world.container(notebook)
    docker_world.pause_service()  # the notebook would start the next one at once, which might see the stop
    docker_world.engine.run("stop", container)
    docker_world.kill_service()
    assert STOPPED_OR_KILLED in await docker_world.ended(notebook, 20)


async def test_a_container_that_cannot_change_its_image(docker_world: DockerWorld) -> None:
    """Its start archive is in a volume, which ends with it, also if a person removes the container alone."""
    docker_world.configure(read_only=True)
    notebook = await docker_world.open()
    await notebook.run(WRITE)
    assert await notebook.value("write('/home/kernel/new')") == "'Read-only file system'"
    assert await notebook.value("write('/roost/new')") == "'Permission denied'"
    assert await notebook.value("write('/tmp/new')") == "'written'"
    assert len(docker_world.left()) == 2  # the container and its volume
    await docker_world.restart(notebook)
    container = await docker_world.container(notebook)
    docker_world.engine.run("rm", "--force", container)
    assert STOPPED in await docker_world.ended(notebook, 20)
    await until(lambda: not docker_world.left(), "the volume is removed")
    await docker_world.restart(notebook)
    await docker_world.lives(notebook)


async def test_a_paused_container_lives_on(docker_world: DockerWorld) -> None:
    notebook = await docker_world.open()
    container = await docker_world.container(notebook)
    docker_world.engine.run("pause", container)
    await asyncio.sleep(0)
    docker_world.engine.run("unpause", container)
    await docker_world.lives(notebook)


async def test_the_engine(docker_world: DockerWorld) -> None:
    """Kernels live while the engine is away. It ends them when it starts again, because it does not restore them."""
    notebook = await docker_world.open()
    await docker_world.outlives_absence(notebook)
    reason = await docker_world.ended(notebook, 60)
    assert "stopped" in reason
    await docker_world.restart(notebook)
    await docker_world.lives(notebook)


async def test_the_service_during_a_pull(docker_world: DockerWorld, tmp_path: Path) -> None:
    """The next service pulls again, because the client repeats its start. The wait shows the progress of both pulls."""
    docker_world.configure(pull="missing")
    progress = re.compile(r"the image \S+ is being pulled: \d+ of \d+ MB")

    def is_shown() -> bool:
        with contextlib.suppress(RoostError):  # the service was killed
            kernels = docker_world.service().kernels().result(allow_s(10))
            return any(progress.fullmatch(kernel.waits_for) for kernel in kernels)
        return False

    with Registry(docker_world.engine, tmp_path / "registry") as registry:
        registry.hold(2_000_000)
        notebook = docker_world.notebook(options={"image": registry.image}, launch_timeout=600)
        opening = asyncio.create_task(notebook.open())
        await until(is_shown, "progress is shown", within_s=30)
        docker_world.kill_service()
        await until(is_shown, "progress is shown after the service was killed", within_s=60)
        registry.go_on()
        await opening
        await notebook.run("mine = 42")
        await docker_world.lives(notebook)
        await docker_world.close_stopped(notebook)
        docker_world.engine.run("rmi", registry.image)


async def test_the_engine_during_a_pull(docker_world: DockerWorld, tmp_path: Path) -> None:
    """The start waits in the queue until the engine is back, which then pulls again."""
    docker_world.configure(pull="missing")
    with Registry(docker_world.engine, tmp_path / "registry") as registry:
        registry.hold(2_000_000)
        notebook = docker_world.notebook(options={"image": registry.image}, launch_timeout=600)
        opening = asyncio.create_task(notebook.open())
        await until(lambda: any("/blobs/" in path for path in registry.requests()), "there is a pull")
        docker_world.engine.kill()
        registry.go_on()
        docker_world.engine.start()
        await opening
        await notebook.run("mine = 42")
        await docker_world.lives(notebook)
        await docker_world.close_stopped(notebook)
        docker_world.engine.run("rmi", registry.image)


async def test_the_service_at_any_moment_of_a_start(docker_world: DockerWorld) -> None:
    """The client repeats its call to the next service. Nothing stays behind, whatever step was cut short."""
    chance = random.Random(SEED)
    print(f"ROOST_OUTAGES_SEED={SEED}")
    for _ in range(ROUNDS):
        notebook = docker_world.notebook()
        opening = asyncio.create_task(notebook.open())
        moment_s = chance.uniform(0.0, 1.2)
        await asyncio.sleep(moment_s)  # the moment is the test
        docker_world.kill_service()
        killed_at = time.monotonic()
        with contextlib.suppress(RoostError):
            await opening
            await notebook.run("mine = 42")
            say(f"killed {moment_s:.2f} s after the start; it answers after", killed_at)
            await docker_world.lives(notebook)
            await docker_world.close_stopped(notebook)
        if notebook in docker_world.opened:
            docker_world.opened.remove(notebook)
    await until(lambda: not docker_world.left(), "nothing is left", within_s=60)
