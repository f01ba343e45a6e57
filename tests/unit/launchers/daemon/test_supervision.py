"""Background tasks that go on after errors."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from roost.launchers.daemon import supervision
from roost.launchers.daemon.supervision import keep_running, list_failures
from roost.launchers.daemon.tasks import cancel_all

log = logging.getLogger(__name__)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_AGAIN_S", (0.0, 0.0))
    monkeypatch.setattr(supervision, "_failures", {})


async def test_a_task_that_fails_runs_again_until_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    problems: list[Exception | None] = [ValueError("a"), ValueError("a"), KeyError("b"), None]

    async def run() -> None:
        if (problem := problems.pop(0)) is not None:
            raise problem

    tasks: set[asyncio.Task[Any]] = set()
    await keep_running(run, tasks, log, "the watch")
    assert problems == []
    assert [record.getMessage() for record in caplog.records] == ["the watch failed, and is tried again"] * 2
    assert list_failures() == {"the watch": "KeyError: 'b'"}
    await asyncio.sleep(0)
    assert tasks == set()


async def test_a_failure_is_over_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[Exception | None] = [ValueError("a"), None]

    async def run() -> None:
        if (problem := problems.pop(0)) is not None:
            raise problem

    await keep_running(run, set(), log, "the watch")
    assert list_failures()
    monkeypatch.setattr(supervision, "_CALM_S", 0.0)
    assert list_failures() == {}


async def test_a_cancelled_task_ends() -> None:
    tasks: set[asyncio.Task[Any]] = set()
    task = keep_running(lambda: asyncio.sleep(600), tasks, log, "the watch")
    await asyncio.sleep(0)
    await cancel_all(tasks)
    assert task.cancelled()
