"""Recent requests and the workload: remembered, bounded, and only a cache."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeAgent, fake_world
from roost.launchers.protocol.messages import Owner
from roost.placement import Device, Node, Request, Snapshot
from roost.scheduler.policies import recent_requests
from roost.scheduler.policies.recent_requests import WINDOW, RecentRequests
from roost.testing.deadlines import allow_s

GPU = Request(cpus=2, gpus=0.5, gpu_models=("T4",), labels={"secret": "plan"}, owner="ada")
CPU = Request(cpus=1)


def cluster(model: str = "T4", count: int = 4) -> Snapshot:
    devices = tuple(Device(id=str(i), model=model) for i in range(count))
    return Snapshot.of([Node(id="n", cpus=8, devices=devices)])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_workload_is_computed_again_when_that_matters() -> None:
    clock = Clock()
    recent = RecentRequests(None, clock=clock)
    made = [recent.workload(cluster())]

    def note(count: int, request: Request = GPU) -> bool:
        for _ in range(count):
            recent.note(request)
        made.append(recent.workload(cluster()))
        return made[-1] is not made[-2]

    assert not note(100, CPU)
    assert not note(19)
    assert note(1)
    assert made[-1].is_useful
    assert sum(count for _, count in made[-1].classes) == 120
    assert [note(9), note(1), note(14), note(1)] == [False, True, False, True]
    assert not note(1)
    clock.now = 90_000.0
    assert note(1)
    clock.now = 180_000.0
    assert not note(0)
    assert recent.workload(cluster("A100")) is not made[-1]
    assert recent.workload(cluster("A100")).gpus == {"A100": 4.0}
    assert recent.workload(Snapshot.of([])).gpus == {"A100": 4.0}


async def test_the_workload_is_bounded() -> None:
    recent = RecentRequests(None, clock=Clock())
    for number in range(WINDOW - 50):
        recent.note(Request(cpus=number))
    for _ in range(25):
        recent.note(GPU)
        recent.note(CPU)
    workload = recent.workload(cluster())
    assert len(workload.classes) == 100
    assert {count for asked, count in workload.classes if asked.gpus} == {25.0}
    assert max(workload.classes, key=lambda each: each[1])[0].cpus == 1.0


async def test_requests_survive_a_restart_and_the_file_stays_small(tmp_path: Path) -> None:
    file = tmp_path / "requests.json"
    recent = RecentRequests(file, clock=Clock())
    for _ in range(WINDOW):
        recent.note(CPU)
    for _ in range(30):
        recent.note(GPU)
    recent.close()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "plan" not in file.read_text()
    assert file.stat().st_size < 100_000
    again = RecentRequests(file, clock=Clock()).workload(cluster())
    assert again == recent.workload(cluster())
    assert (sum(count for _, count in again.classes), again.is_useful) == (WINDOW, True)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[" * 100_000, "7", "{}", '{"requests": 7}', '{"requests": [7]}', '{"requests": [["x", 1, []]]}',
     '{"requests": [[NaN, 1, []]]}', '{"requests": [[1, 1, [2]]]}', "\udcff"],
)  # fmt: skip
def test_a_broken_file_is_ignored(tmp_path: Path, content: str) -> None:
    file = tmp_path / "requests.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    assert RecentRequests(file, clock=Clock()).workload(cluster()).classes == ()


async def test_one_warning_if_the_file_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recent = RecentRequests(tmp_path / "none" / "requests.json", clock=Clock())
    for _ in range(3):
        recent.note(GPU)
        recent.close()  # writes the file now
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_the_file_is_written_soon_and_once_for_a_burst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_requests, "_SAVE_AFTER_S", 0.02)
    written: list[Path] = []
    done = asyncio.Event()

    def write(path: Path, value: object) -> None:
        written.append(path)
        done.set()

    monkeypatch.setattr(recent_requests, "write_private_json", write)
    recent = RecentRequests(tmp_path / "requests.json", clock=Clock())
    for _ in range(100):
        recent.note(GPU)
    assert written == []
    await asyncio.wait_for(done.wait(), allow_s(60))
    recent.close()
    assert len(written) == 1


async def test_an_admitted_request_is_noted_once(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=2) as w:
        await w.start("k", gpus=0.5)
        await w.start("k", gpus=0.5)
        w.agent.end("k")
        await w.told("exited")
        await w.start("k", "2", gpus=0.5)
        with pytest.raises(Exception, match="whole number"):
            await w.start("bad", gpus=1.5)
        await w.scheduler.explain(Request(gpus=1), Owner(user="ada"))
        assert [request.gpus for request in w.scheduler._recent._requests] == [0.5]


async def test_the_scheduler_keeps_the_file_in_its_folder(tmp_path: Path) -> None:
    from kit.fakes.scheduler import FakeBackend
    from roost.scheduler.backends.agent_calls import Agents
    from roost.scheduler.config.settings import Settings
    from roost.scheduler.core.scheduler import Scheduler

    agent = FakeAgent(tmp_path / "agent")
    agents = Agents()
    os.mkdir(tmp_path / "s")
    scheduler = Scheduler(FakeBackend([agent], Settings(), agents), agents, Settings(), folder=tmp_path / "s")
    await scheduler.open()
    scheduler._recent.note(GPU)
    await scheduler.close()
    await agent.close()
    assert json.loads((tmp_path / "s" / "requests.json").read_text()) == {"requests": [[2.0, 0.5, 0, ["T4"]]]}
