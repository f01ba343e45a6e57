"""What an agent does when the cluster manager's daemon on its node ends, with daemons that do nothing but sleep."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from roost.launchers.agent import manager_watch
from roost.launchers.agent.manager_watch import ManagerWatch
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.messages import Manager

GONE = "127.0.0.1:1"
"""Nobody listens there."""


@contextmanager
def daemon(address: str, *, grace_s: float = 60.0) -> Iterator[tuple[subprocess.Popen[bytes], Manager]]:
    """A daemon of a manager at `address`, which is killed at the end at the latest."""
    with subprocess.Popen(["sleep", "60"]) as process:
        started_at = start_time(process.pid)
        try:
            yield (
                process,
                Manager(
                    name="Ray",
                    pid=process.pid,
                    process_started_at=started_at,
                    address=address,
                    grace_s=grace_s,
                ),
            )
        finally:
            process.kill()


@pytest.fixture
async def answering() -> AsyncIterator[str]:
    """The address of a manager that answers."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Losses:
    """What `ManagerWatch` says."""

    def __init__(self) -> None:
        self.reasons: asyncio.Queue[str] = asyncio.Queue()
        self.cut_off: list[str] = []

    async def __call__(self, reason: str) -> None:
        self.reasons.put_nowait(reason)

    async def next(self) -> str:
        return await asyncio.wait_for(self.reasons.get(), 5)

    async def none_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.reasons.get(), seconds)
        except asyncio.TimeoutError:
            return True
        return False


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_watch, "_SETTLE_S", 0.01)


@pytest.fixture
def losses() -> Losses:
    return Losses()


@pytest.fixture
async def watching(tmp_path: Path, losses: Losses) -> AsyncIterator[ManagerWatch]:
    managed = ManagerWatch(tmp_path / "manager.json", losses, losses.cut_off.append)
    yield managed
    managed.close()
    managed.close()


async def test_a_node_that_left_its_cluster(watching: ManagerWatch, losses: Losses, answering: str) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(manager)
        assert await losses.none_within(0.05)
        process.kill()
        assert await losses.next() == "its node has left the Ray cluster"
    assert await losses.none_within(0.05), "told once"


async def test_a_node_has_not_left_while_one_of_its_daemons_lives(
    tmp_path: Path, watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering) as (first, one), daemon(answering) as (second, other):
        watching.watch(one)
        watching.watch(other)
        first.kill()
        assert await losses.none_within(0.1)
        assert not watching.is_cut_off
        watching.close()
        following = ManagerWatch(tmp_path / "manager.json", losses, losses.cut_off.append)
        following.resume()
        assert await losses.none_within(0.1)
        second.kill()
        assert "has left" in await losses.next()
        following.close()


async def test_a_daemon_that_ends_because_its_manager_is_gone_says_so_though_another_answers_there(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering, grace_s=0.3) as (process, manager):
        watching.watch(manager)
        watching.watch(replace(manager, is_gone=True))
        process.kill()
        assert await losses.next() == "the Ray cluster did not come back within 0.3 s"


async def test_a_daemon_that_leaves_a_process_that_goes_on(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering) as (_, manager), daemon(answering) as (_, other):
        watching.watch(manager)
        watching.watch(other)
        watching.watch(replace(manager, has_left=True))
        watching.watch(replace(manager, has_left=True))
        assert await losses.none_within(0.1)
        watching.watch(replace(other, has_left=True))
        assert "has left" in await losses.next()


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("mine", "its node has left the Ray cluster"),
        ("another", "the Ray cluster did not come back within 0.3 s"),
        ("", "its node has left the Ray cluster"),
    ],
)
async def test_another_cluster_at_the_address_is_not_the_one_that_was_left(
    watching: ManagerWatch, losses: Losses, answering: str, says: str, reason: str
) -> None:
    with daemon(answering, grace_s=0.3) as (process, manager):
        watching.watch(replace(manager, cluster_id="mine", probe=("echo", says)))
        process.kill()
        assert await losses.next() == reason


async def test_where_nobody_can_say_which_cluster_is_there_the_node_has_left(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(replace(manager, cluster_id="mine", probe=("/nonexistent",)))
        process.kill()
        assert "has left" in await losses.next()


async def test_a_manager_that_is_lost_as_a_whole_has_its_grace(
    watching: ManagerWatch, losses: Losses
) -> None:
    with daemon(GONE, grace_s=0.3) as (process, manager):
        watching.watch(manager)
        killed_at = time.monotonic()
        process.kill()
        assert await losses.next() == "the Ray cluster did not come back within 0.3 s"
        assert time.monotonic() - killed_at >= 0.3


async def test_the_same_cluster_comes_back_within_the_grace(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(GONE, grace_s=0.5) as (first, before), daemon(answering) as (second, after):
        watching.watch(before)
        first.kill()
        first.wait()
        assert await losses.none_within(0.05)
        assert watching.is_cut_off
        assert losses.cut_off == ["Ray's last daemon here has ended"]
        watching.watch(after)
        assert not watching.is_cut_off
        assert await losses.none_within(0.6)
        second.kill()
        assert "has left" in await losses.next()


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_the_next_agent_watches_what_this_one_did(
    tmp_path: Path, watching: ManagerWatch, losses: Losses, answering: str, dies: str
) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(manager)
        watching.close()
        if dies == "before":
            process.kill()
            process.wait()
        following = ManagerWatch(tmp_path / "manager.json", losses, losses.cut_off.append)
        following.resume()
        process.kill()
        assert "has left" in await losses.next()
        following.close()


async def test_an_agent_that_is_closed_says_nothing(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(manager)
        process.kill()
        watching.close()
        assert await losses.none_within(0.1)


async def test_nothing_known_or_readable_is_nothing_to_watch(
    tmp_path: Path, watching: ManagerWatch, losses: Losses, caplog: pytest.LogCaptureFixture
) -> None:
    watching.resume()
    assert not caplog.text
    (tmp_path / "manager.json").write_text('{"name": "Ray"}')
    watching.resume()
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:"])
async def test_an_address_that_is_none_is_a_manager_that_does_not_answer(
    watching: ManagerWatch, losses: Losses, address: str
) -> None:
    with daemon(address, grace_s=0.0) as (process, manager):
        watching.watch(manager)
        process.kill()
        assert "did not come back" in await losses.next()
