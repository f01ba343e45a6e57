"""The pulls of images: their progress, who waits for them, and what becomes of the leases that do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from roost.launchers.protocol.messages import Launch, Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import Pod, PodChange
from roost.scheduler.backends.docker.engine import Engine, EngineError, JsonObject
from roost.scheduler.backends.docker.pending import PendingLeases
from roost.scheduler.backends.docker.pulls import ImagePulls, PullProgress
from roost.scheduler.errors import BackendUnavailable, LaunchError, LeaseConflict, RoostError
from roost.testing.deadlines import until

IMAGE = "team/python:3"
LEASE = Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(), node_id="here")
STEPS_S = 5.0


class FakeEngine(Engine):
    """An engine that has an image once `is_here` is set, or refuses it with `problem`."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")
        self.is_here = asyncio.Event()
        self.problem: Exception | None = None
        self.pulls, self.closed = 0, 0

    async def pull(self, image: str) -> AsyncGenerator[JsonObject, None]:
        self.pulls += 1
        try:
            yield {"status": "Pulling from team/python", "id": "3"}
            yield {
                "status": "Downloading",
                "id": "a",
                "progressDetail": {"current": 1_000_000, "total": 9_000_000},
            }
            await self.is_here.wait()
            if self.problem is not None:
                raise self.problem
        finally:
            self.closed += 1


class Creations:
    """Creations of containers, which end once `may_end` is set, with `problem` if there is one."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.problem: Exception | None = None
        self.created: list[Lease] = []

    async def create(self, lease: Lease, launch: Launch | None) -> Pod:
        await self.may_end.wait()
        if self.problem is not None:
            raise self.problem
        self.created.append(lease)
        return Pod(lease=replace(lease, state="held"))


def add(progress: PullProgress, layer: str, status: str, current: int = 0, total: int = 0) -> None:
    detail = {"current": current, "total": total} if total else {}
    progress.add({"id": layer, "status": status, "progressDetail": detail})


def test_progress_adds_up_the_layers_that_are_downloaded() -> None:
    progress = PullProgress(image=IMAGE)
    progress.add({"status": "Pulling from team/python", "id": "3"})
    add(progress, "a", "Pulling fs layer")
    add(progress, "b", "Already exists")
    assert progress.describe() == f"the image {IMAGE} is being pulled"
    add(progress, "a", "Downloading", 20_000_000, 80_000_000)
    add(progress, "c", "Downloading", 100_000_000, 400_000_000)
    assert progress.describe() == f"the image {IMAGE} is being pulled: 120 of 480 MB"
    add(progress, "a", "Verifying Checksum")
    add(progress, "c", "Extracting", 5_000_000, 400_000_000)
    assert progress.describe() == f"the image {IMAGE} is being pulled: 480 of 480 MB"


@pytest.mark.parametrize(
    "line", [{}, {"id": "a"}, {"progressDetail": None}, {"status": "Extracting", "id": "x"}]
)
def test_odd_lines_change_nothing(line: JsonObject) -> None:
    progress = PullProgress(image=IMAGE)
    progress.add(line)
    assert progress.describe() == f"the image {IMAGE} is being pulled"


async def test_a_pull_is_shared_and_given_up_when_nobody_waits() -> None:
    engine = FakeEngine()
    pulls = ImagePulls(engine, lambda _: None)
    first, second = (asyncio.create_task(pulls.wait(IMAGE)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    assert (engine.pulls, engine.closed) == (1, 0)
    second.cancel()
    await asyncio.wait([second])
    third = asyncio.create_task(pulls.wait(IMAGE))  # it does not join the pull that ends
    engine.is_here.set()
    await asyncio.wait_for(third, STEPS_S)
    assert (engine.pulls, engine.closed) == (2, 2)


async def test_a_download_that_stalls_shows_how_far_it_is() -> None:
    shown: asyncio.Queue[str] = asyncio.Queue()
    pulls = ImagePulls(FakeEngine(), shown.put_nowait)
    waiting = asyncio.create_task(pulls.wait(IMAGE))
    assert await asyncio.wait_for(shown.get(), STEPS_S) == IMAGE
    assert pulls.describe(IMAGE) == f"the image {IMAGE} is being pulled: 1 of 9 MB"
    waiting.cancel()
    await asyncio.wait([waiting])
    assert pulls.describe(IMAGE) == f"the image {IMAGE} is being pulled"


async def test_all_that_wait_learn_why_there_is_no_image() -> None:
    engine = FakeEngine()
    engine.problem = EngineError(500, "manifest unknown")
    engine.is_here.set()
    pulls = ImagePulls(engine, lambda _: None)
    found = await asyncio.gather(pulls.wait(IMAGE), pulls.wait(IMAGE), return_exceptions=True)
    assert [str(problem) for problem in found] == [
        f"Docker cannot pull the image {IMAGE}: manifest unknown."
    ] * 2
    assert engine.pulls == 1


class TestPendingLeases:
    @pytest.fixture
    async def engine(self) -> FakeEngine:
        return FakeEngine()

    @pytest.fixture
    async def creations(self) -> Creations:
        return Creations()

    @pytest.fixture
    async def changes(self) -> asyncio.Queue[PodChange]:
        return asyncio.Queue()

    @pytest.fixture
    async def pending(
        self, engine: FakeEngine, creations: Creations, changes: asyncio.Queue[PodChange]
    ) -> PendingLeases:
        return PendingLeases(engine, creations.create, changes.put_nowait)

    async def test_a_lease_is_held_once_its_container_is_there(
        self,
        engine: FakeEngine,
        creations: Creations,
        changes: asyncio.Queue[PodChange],
        pending: PendingLeases,
    ) -> None:
        pod = pending.start(LEASE, None, IMAGE)
        assert (pod.lease.state, pod.lease.reason) == ("pending", f"the image {IMAGE} is being pulled")
        engine.is_here.set()
        creations.may_end.set()
        change = await asyncio.wait_for(changes.get(), STEPS_S)
        assert change.pod is not None
        assert change.pod.lease == replace(LEASE, state="held")
        assert pending.renew(change) == change
        assert LEASE.id not in pending

    @pytest.mark.parametrize(
        ("problem", "is_final"),
        [
            (LaunchError("no such image."), True),
            (LeaseConflict("other kernels have taken the room"), False),
            (BackendUnavailable("the engine is away"), False),
        ],
    )
    async def test_a_failure_stays_shown_until_the_lease_is_deleted(
        self,
        problem: RoostError,
        is_final: bool,
        engine: FakeEngine,
        creations: Creations,
        changes: asyncio.Queue[PodChange],
        pending: PendingLeases,
    ) -> None:
        creations.problem = problem
        creations.may_end.set()
        engine.is_here.set()
        pending.start(LEASE, None, IMAGE)
        change = await asyncio.wait_for(changes.get(), STEPS_S)
        (shown,) = pending.pods()
        assert change.pod == shown
        lease = shown.lease
        assert (lease.state, lease.reason, lease.is_final) == ("lost", str(problem).rstrip("."), is_final)
        assert (await asyncio.wait_for(changes.get(), STEPS_S)).kind == "nodes"
        await pending.drop(LEASE.id)
        assert pending.pods() == []
        assert pending.renew(change) is None

    async def test_a_container_that_is_being_made_is_there_after_a_deletion(
        self,
        engine: FakeEngine,
        creations: Creations,
        changes: asyncio.Queue[PodChange],
        pending: PendingLeases,
    ) -> None:
        engine.is_here.set()
        pending.start(LEASE, None, IMAGE)
        reason = "its container is being made"
        await until(lambda: pending.pods()[0].lease.reason == reason, reason, 60, 0.01)
        dropping = asyncio.create_task(pending.drop(LEASE.id))
        await asyncio.sleep(0.01)
        assert not dropping.done()
        creations.may_end.set()
        await asyncio.wait_for(dropping, STEPS_S)
        assert creations.created == [LEASE]
        assert changes.empty()

    async def test_an_end_gives_up_all_pulls(self, engine: FakeEngine, pending: PendingLeases) -> None:
        pending.start(LEASE, None, IMAGE)
        await asyncio.sleep(0.01)
        await asyncio.wait_for(pending.close(), STEPS_S)
        assert (engine.pulls, engine.closed) == (1, 1)
        assert pending.pods() == []
