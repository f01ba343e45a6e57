"""Volumes in containers of a real engine: what a kernel reads and writes there, and what the engine never gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kit.clusters.docker.shared_cluster import cluster_settings
from kit.clusters.docker_engine import DockerEngine
from roost.launchers.protocol.messages import FOLDER_OPTION, Lease
from roost.placement import Request
from roost.scheduler.backends.docker.backend import create
from roost.scheduler.backends.docker.names import name_container
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.scheduler.errors import ConfigError, LaunchError
from roost.testing import backend_context, open_backend
from roost.testing.contract_steps import OWNER, ContractSteps, Opener, name_kernel, name_lease

WRITE = """
import sys
for folder in sys.argv[1:]:
    try:
        open(folder + "/written", "w").write("by a kernel")
        print("written")
    except OSError as problem:
        print(problem.strerror)
"""


class TestVolumes(ContractSteps):
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """Return a folder with the folder `sets`, and `scratch`, to which the image's user may write."""
        (tmp_path / "data" / "sets").mkdir(parents=True)
        (tmp_path / "data" / "sets" / "numbers").write_text("1 2 3")
        (tmp_path / "data" / "scratch").mkdir()
        os.chown(tmp_path / "data" / "scratch", 1000, 1000)
        return tmp_path / "data"

    @pytest.fixture
    def opener(self, docker_cluster: DockerEngine, data: Path, tmp_path: Path) -> Opener:
        tmp_path.chmod(0o700)
        allowed = [str(data), f"{data}/scratch:rw", "team-*:rw"]
        settings = RoostDockerBackend(**cluster_settings(docker_cluster, tmp_path), allowed_volumes=allowed)
        return partial(open_backend, lambda agents: create(settings, backend_context(agents, tmp_path)))

    @pytest.fixture
    def team_volume(self, docker_cluster: DockerEngine) -> Iterator[str]:
        docker_cluster.run("volume", "create", "team-a")
        yield "team-a"
        docker_cluster.run("volume", "rm", "team-a")

    async def test_a_kernel_reads_and_writes_where_it_may(
        self, opener: Opener, docker_cluster: DockerEngine, data: Path, team_volume: str
    ) -> None:
        volumes = [f"{data}/sets:/sets:ro", f"{data}/scratch:/scratch", f"{team_volume}:/home/kernel"]
        request = Request(options={"volumes": volumes, FOLDER_OPTION: "/scratch"})
        async with opener() as (backend, _):
            backend.check_request(request)
            lease = await self.take(backend, name_kernel("mounts"), request)
            container = name_container(OWNER.user, lease.id)
            assert docker_cluster.run("exec", container, "cat", "/sets/numbers") == "1 2 3"
            command = ("python3", "-c", WRITE, "/sets", "/scratch", "/home/kernel")
            shown = docker_cluster.run("exec", container, *command).splitlines()
            assert shown == ["Read-only file system", "written", "written"]
            await self.release(backend, lease)
        assert (data / "scratch" / "written").read_text() == "by a kernel"
        assert docker_cluster.run("volume", "ls", "--quiet").split() == [team_volume]

    async def test_what_is_not_allowed_never_reaches_the_engine(
        self, opener: Opener, docker_cluster: DockerEngine, data: Path
    ) -> None:
        (data / "scratch" / "out").symlink_to("/etc")
        (data / "scratch" / "up").symlink_to("../..")
        cases = {
            f"{data}/scratch/out:/x:ro": "which is really '/etc', is not allowed here",
            f"{data}/scratch/up:/x:ro": "is not for kernels",  # it has the service's key
            f"{data}/missing:/x:ro": "cannot be mounted (No such file or directory): make it",
            "team-b:/x": "make it with `docker volume create team-b`",
        }
        async with opener() as (backend, _):
            for number, (volume, refusal) in enumerate(cases.items()):
                request = Request(options={"volumes": [volume]})
                backend.check_request(request)
                node = (await self.find_room(backend, request)).node_id
                kernel_id = name_kernel(f"refused-{number}")
                lease = Lease(
                    id=name_lease(kernel_id), kernel_id=kernel_id, owner=OWNER, request=request, node_id=node
                )
                with pytest.raises(LaunchError) as refused:
                    await backend.claim(lease)
                assert refusal in str(refused.value)
            with pytest.raises(ConfigError, match="may only be read here"):
                backend.check_request(Request(options={"volumes": [f"{data}/sets:/x"]}))
        assert not (data / "missing").exists()
        assert docker_cluster.objects() == []
