"""An agent's reaction to the end of the cluster manager's daemon on its node. The daemons only sleep."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from roost.launchers.agent.manager_watch import ManagerWatch
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.messages import Manager

GONE = "127.0.0.1:1"
"""An address where nothing listens."""


@contextmanager
def daemon(address: str, *, grace_s: float = 60.0) -> Iterator[tuple[subprocess.Popen[bytes], Manager]]:
    """A daemon of a manager at `address`. It is killed at the end."""
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
    """The reports of a `ManagerWatch`."""

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


@pytest.fixture
def losses() -> Losses:
    return Losses()


def watch_in(folder: Path, losses: Losses) -> ManagerWatch:
    return ManagerWatch(folder / "manager.json", losses, losses.cut_off.append, settle_s=0.01)


@pytest.fixture
async def watching(tmp_path: Path, losses: Losses) -> AsyncIterator[ManagerWatch]:
    watch = watch_in(tmp_path, losses)
    yield watch
    watch.close()
    watch.close()


async def test_a_node_that_has_left_its_cluster(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(manager)
        assert await losses.none_within(0.05)
        process.kill()
        assert await losses.next() == "its node has left the Ray cluster"
    assert await losses.none_within(0.05), "reported once"


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
        following = watch_in(tmp_path, losses)
        following.resume()
        assert await losses.none_within(0.1)
        second.kill()
        assert "has left" in await losses.next()
        following.close()


async def test_a_daemon_may_report_that_its_manager_has_ended_while_another_one_answers(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering, grace_s=0.3) as (process, manager):
        watching.watch(manager)
        watching.watch(replace(manager, is_gone=True))
        process.kill()
        assert await losses.next() == "the Ray cluster did not come back within 0.3 s"


async def test_a_daemon_may_end_while_its_process_goes_on(
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
    ("prints", "reason"),
    [
        ("mine", "its node has left the Ray cluster"),
        ("another", "the Ray cluster did not come back within 0.3 s"),
        ("", "its node has left the Ray cluster"),
    ],
)
async def test_another_cluster_at_the_same_address_does_not_count(
    watching: ManagerWatch, losses: Losses, answering: str, prints: str, reason: str
) -> None:
    with daemon(answering, grace_s=0.3) as (process, manager):
        watching.watch(replace(manager, cluster_id="mine", probe=("echo", prints)))
        process.kill()
        assert await losses.next() == reason


async def test_the_node_has_left_if_the_cluster_id_cannot_be_read(
    watching: ManagerWatch, losses: Losses, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(replace(manager, cluster_id="mine", probe=("/nonexistent",)))
        process.kill()
        assert "has left" in await losses.next()


async def test_a_manager_that_is_away_has_a_grace(watching: ManagerWatch, losses: Losses) -> None:
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
async def test_the_next_agent_watches_the_same_daemons(
    tmp_path: Path, watching: ManagerWatch, losses: Losses, answering: str, dies: str
) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(manager)
        watching.close()
        if dies == "before":
            process.kill()
            process.wait()
        following = watch_in(tmp_path, losses)
        following.resume()
        process.kill()
        assert "has left" in await losses.next()
        following.close()


async def test_a_closed_watch_reports_nothing(watching: ManagerWatch, losses: Losses, answering: str) -> None:
    with daemon(answering) as (process, manager):
        watching.watch(manager)
        process.kill()
        watching.close()
        assert await losses.none_within(0.1)


async def test_a_missing_or_unreadable_file_means_nothing_to_watch(
    tmp_path: Path, watching: ManagerWatch, losses: Losses, caplog: pytest.LogCaptureFixture
) -> None:
    watching.resume()
    assert not caplog.text
    (tmp_path / "manager.json").write_text('{"name": "Ray"}')
    watching.resume()
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:"])
async def test_an_invalid_address_counts_as_a_manager_that_is_away(
    watching: ManagerWatch, losses: Losses, address: str
) -> None:
    with daemon(address, grace_s=0.0) as (process, manager):
        watching.watch(manager)
        process.kill()
        assert "did not come back" in await losses.next()
