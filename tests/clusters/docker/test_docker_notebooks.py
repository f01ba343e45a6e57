"""Notebooks in containers of a real engine: what containers may do, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kit.clusters.docker_engine import IMAGE, DockerEngine
from kit.jupyter.notebook import Notebook
from roost.scheduler.backends.docker.container_state import STOPPED, STOPPED_OR_KILLED
from roost.scheduler.client.client import connect
from roost.scheduler.errors import KernelDied, LaunchError

pytestmark = pytest.mark.backends("docker", "podman", why="looks into containers")

FILLS_MEMORY = "held = [bytearray(1 << 20) for _ in range(4096)]"
ENDS_S = 30.0


def as_text(secret: str | bytes) -> str:
    return secret.decode() if isinstance(secret, bytes) else secret


@pytest.fixture
def engine(backend: str, request: pytest.FixtureRequest) -> DockerEngine:
    """Return the engine of this test's backend."""
    cluster: DockerEngine = request.getfixturevalue(f"{request.node.callspec.params['backend']}_cluster")
    return cluster


@pytest.fixture
def other_images(engine: DockerEngine) -> Iterator[None]:
    """Add the image `as-root:1`, and `no-zmq:1`, which lacks a package that each agent needs."""
    run = engine.run
    remove = "import zmq, shutil, os; shutil.rmtree(os.path.dirname(zmq.__file__))"
    run("run", "--user", "root", "--name", "changed", IMAGE, "python3", "-c", remove)
    with engine.client() as client:  # the command does not understand what Podman answers
        client.commit("changed", "no-zmq", "1", changes="USER 1000:1000")
        client.commit("changed", "as-root", "1", changes="USER root")
    run("rm", "changed")
    yield
    run("rmi", "no-zmq:1", "as-root:1")


@asynccontextmanager
async def opened(specs: KernelSpecManager) -> AsyncIterator[Notebook]:
    notebook = Notebook("roosted")
    notebook.manager.kernel_spec_manager = specs
    await notebook.open()
    try:
        yield notebook
    finally:
        await notebook.close()


async def test_nobody_reads_a_secret_of_the_kernel_by_inspecting_it(
    specs: KernelSpecManager, engine: DockerEngine
) -> None:
    async with opened(specs) as notebook:
        (container,) = engine.run("ps", "--quiet").split()
        shown = engine.run("inspect", container) + engine.run("logs", container)
        connection = notebook.manager.get_connection_info()
        secrets = [connection["key"], connection["curve_secretkey"]]
        assert not [secret for secret in secrets if not secret or as_text(secret) in shown]


@pytest.mark.parametrize("command", [("rm", "--force"), ("stop",), ("kill",)], ids=lambda words: words[0])
async def test_a_container_that_a_person_ends_is_reported_as_such(
    command: tuple[str, ...], specs: KernelSpecManager, engine: DockerEngine
) -> None:
    async with opened(specs) as notebook:
        (container,) = engine.run("ps", "--quiet").split()
        engine.run(*command, container)
        reason = await notebook.ended(connect("docker"), ENDS_S)
        # Podman does not say which signal a container got.
        assert STOPPED in reason or (engine.program == "podman" and STOPPED_OR_KILLED in reason)


async def test_a_kernel_without_memory_is_reported_as_such(
    specs_of: Callable[..., KernelSpecManager],
) -> None:
    async with opened(specs_of(config={"memory": "512MiB"})) as notebook:
        notebook.client.execute(FILLS_MEMORY)
        assert "memory" in await notebook.ended(connect("docker"), ENDS_S)


@pytest.mark.backends("docker", why="the same option for Podman")
async def test_a_kernel_has_the_shared_memory_that_it_asks_for(
    specs_of: Callable[..., KernelSpecManager],
) -> None:
    async with opened(specs_of(config={"memory": "1GiB", "options": {"shm_size": "256MiB"}})) as notebook:
        assert await notebook.value("__import__('shutil').disk_usage('/dev/shm').total") == str(256 << 20)


@pytest.mark.backends("docker", why="the same option for Podman")
async def test_a_kernel_starts_in_the_folder_of_its_option(
    specs_of: Callable[..., KernelSpecManager],
) -> None:
    async with opened(specs_of(config={"options": {"cwd": "/home/kernel"}})) as notebook:
        assert await notebook.value("__import__('os').getcwd()") == "'/home/kernel'"
    with pytest.raises(LaunchError, match="there is no folder /nowhere on that machine"):
        async with opened(specs_of(config={"options": {"cwd": "/nowhere"}})):
            pass


@pytest.mark.parametrize(
    ("image", "refusal"),
    [
        ("no-such-image:1", "has no image no-such-image:1: get it with `docker pull no-such-image:1`"),
        ("as-root:1", "the image as-root:1 runs as root, which kernels may not"),
        (
            "no-zmq:1",
            "the Python of its image cannot run roost's agent (No module named 'zmq'): install ipykernel",
        ),
    ],
)
async def test_an_unfit_image_is_refused_with_what_helps(
    image: str, refusal: str, specs_of: Callable[..., KernelSpecManager], other_images: None
) -> None:
    specs = specs_of(config={"options": {"image": image}})
    with pytest.raises((LaunchError, KernelDied)) as refused:
        async with opened(specs):
            pass
    assert refusal in str(refused.value)
