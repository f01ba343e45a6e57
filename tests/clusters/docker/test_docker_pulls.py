"""Images that a real engine pulls from a registry while kernels wait for them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from kit.clusters.docker.shared_cluster import cluster_settings
from kit.clusters.docker_engine import DockerEngine, Registry
from kit.clusters.faults import until
from roost.launchers.protocol.messages import Lease
from roost.placement import Request
from roost.scheduler.backends.base import Backend
from roost.scheduler.backends.docker.backend import create
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.testing import backend_context, deadlines, open_backend
from roost.testing.contract_steps import ContractSteps, Opener, name_kernel

LOGIN = "ada:the-password"
HALF = 2_000_000
SHOWS_S = 30.0


async def find(backend: Backend, lease: Lease) -> Lease | None:
    return next((each for each in (await backend.leases()).leases if each.id == lease.id), None)


def blobs_of(registry: Registry) -> list[str]:
    """Return the blobs that the engine has asked for, with repetitions."""
    return [path for path in registry.requests() if "/blobs/" in path]


class TestPulls(ContractSteps):
    @pytest.fixture(params=["docker", "podman"])
    def engine(self, request: pytest.FixtureRequest) -> DockerEngine:
        cluster: DockerEngine = request.getfixturevalue(f"{request.param}_cluster")
        return cluster

    @pytest.fixture(params=["", LOGIN], ids=["open", "login"])
    def login(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def registry(self, engine: DockerEngine, tmp_path: Path, login: str) -> Iterator[Registry]:
        with Registry(engine, tmp_path / "registry", login) as registry:
            yield registry
            with suppress(RuntimeError):  # it was not pulled
                engine.run("rmi", registry.image)

    @pytest.fixture
    def opener(self, engine: DockerEngine, registry: Registry, tmp_path: Path) -> Opener:
        tmp_path.chmod(0o700)
        settings = RoostDockerBackend(**cluster_settings(engine, tmp_path), pull="missing")
        return partial(open_backend, lambda agents: create(settings, backend_context(agents, tmp_path)))

    def log_in(self, registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Write the file that `docker login` writes."""
        auths = {registry.address: {"auth": base64.b64encode(LOGIN.encode()).decode()}}
        (folder / "config.json").write_text(json.dumps({"auths": auths}))
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))

    async def start(self, backend: Backend, name: str, image: str) -> Lease:
        """Claim a lease for a kernel with this image."""
        request = Request(options={"image": image})
        placement = await self.find_room(backend, request)
        return await self.claim(backend, name_kernel(name), request, placement)

    async def shown(self, backend: Backend, lease: Lease, is_met: Callable[[Lease], bool]) -> Lease:
        """Return a lease once it meets the condition."""
        shown = await find(backend, lease)

        async def look() -> Lease | None:
            nonlocal shown
            if shown is None or not is_met(shown):
                await self.next_event(backend)
                shown = await find(backend, lease)
            return shown if shown is not None and is_met(shown) else None

        return await deadlines.until(look, lambda: f"the lease meets the condition: {shown}", SHOWS_S, 0.0)

    async def test_kernels_wait_for_one_pull_and_see_its_progress(
        self, opener: Opener, registry: Registry, engine: DockerEngine, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        """Podman shows none."""
        self.log_in(registry, tmp_path, monkeypatch)
        registry.hold(HALF)
        async with opener() as (backend, _):
            first = await self.start(backend, "one", registry.image)
            second = await self.start(backend, "two", registry.image)
            assert (first.state, first.reason) == ("pending", f"the image {registry.image} is being pulled")
            progress = re.compile(rf"the image {registry.image} is being pulled: \d+ of \d+ MB")
            for lease in (first, second) if engine.program == "dockerd" else ():
                await self.shown(backend, lease, lambda shown: bool(progress.fullmatch(shown.reason)))
            registry.go_on()
            for lease in (first, second):
                await self.held(backend, lease)
            blobs = blobs_of(registry)
            assert len(blobs) == len(set(blobs))
            for lease in (first, second):
                await self.release(backend, lease)
        assert "the-password" not in caplog.text

    async def test_a_start_that_nobody_wants_ends_the_pull(
        self, opener: Opener, registry: Registry, engine: DockerEngine, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        self.log_in(registry, tmp_path, monkeypatch)
        registry.hold(HALF)
        async with opener() as (backend, _):
            leases = [await self.start(backend, name, registry.image) for name in ("one", "two")]
            await until(
                lambda: any("/blobs/" in path for path in registry.requests()), "there is a pull", within_s=30
            )
            await self.release(backend, leases[0])
            await self.shown(backend, leases[1], lambda shown: "is being pulled" in shown.reason)
            await self.release(backend, leases[1])
            assert engine.objects() == []
            asked = len(blobs_of(registry))
            registry.go_on()
            lease = await self.start(backend, "three", registry.image)
            await self.held(backend, lease)
            assert len(blobs_of(registry)) > asked  # a pull of its own
            await self.release(backend, lease)

    async def test_a_failed_pull_ends_the_start_with_the_engines_reason(
        self, login: str, opener: Opener, registry: Registry, engine: DockerEngine
    ) -> None:
        image = f"{registry.address}/team/missing:1"
        reason = "no basic auth credentials|authentication required" if login else "manifest unknown"
        async with opener() as (backend, _):
            lease = await self.start(backend, "one", image)
            shown = await self.shown(backend, lease, lambda shown: shown.state == "lost")
            assert shown.is_final
            assert shown.reason.startswith(f"Docker cannot pull the image {image}: ")
            assert re.search(reason, shown.reason)
            await self.release(backend, lease)
        assert engine.objects() == []

    async def test_a_pull_does_not_outlive_its_service(
        self, opener: Opener, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.log_in(registry, tmp_path, monkeypatch)
        registry.hold(HALF)
        async with opener() as (backend, _):
            lease = await self.start(backend, "one", registry.image)
            await until(
                lambda: any("/blobs/" in path for path in registry.requests()), "there is a pull", within_s=30
            )
        self.taken.clear()
        async with opener() as (backend, _):
            assert await find(backend, lease) is None
