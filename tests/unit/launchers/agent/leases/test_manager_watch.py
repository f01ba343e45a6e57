"""An agent's reaction to the end of the cluster manager's daemon on its node. The daemons only sleep."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from roost.launchers.agent.leases import manager_watch
from roost.launchers.agent.leases.manager_watch import LOOK_S, SETTLE_S, ManagerWatch, find_daemon
from roost.launchers.daemon.process import Watch, start_time
from roost.launchers.protocol.messages import DaemonCommand, Manager
from roost.testing.deadlines import allow_s

RAYLET = DaemonCommand(
    name="raylet", node="--node_ip_address=10.0.0.5", cluster="--gcs-address=10.0.0.1:6379"
)
NOWHERE = "127.0.0.1:1"
"""An address where nothing listens."""


@contextmanager
def daemon(address: str) -> Iterator[tuple[subprocess.Popen[bytes], Manager]]:
    """Run a process that stands for a manager's daemon; yield the process and the manager at `address`."""
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
                    grace_s=60.0,
                ),
            )
        finally:
            process.kill()


@pytest.fixture
async def answering() -> AsyncIterator[str]:
    """Yield an address at which a manager answers."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Losses:
    """The listener of a `ManagerWatch`. It keeps the reason of each loss that the watch reports."""

    def __init__(self) -> None:
        self.reasons: asyncio.Queue[str] = asyncio.Queue()
        self.cut_off: list[str] = []

    async def __call__(self, reason: str) -> None:
        self.reasons.put_nowait(reason)

    async def next(self) -> str:
        return await asyncio.wait_for(self.reasons.get(), allow_s(60))

    def __len__(self) -> int:
        return self.reasons.qsize()


class Sleeps:
    """The waits of a `ManagerWatch`: each one lasts until the test ends it."""

    def __init__(self) -> None:
        self._waits: asyncio.Queue[tuple[float, asyncio.Event]] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        is_over = asyncio.Event()
        self._waits.put_nowait((seconds, is_over))
        await is_over.wait()

    async def begin(self, seconds: float) -> asyncio.Event:
        """Wait until a wait of this length begins. Set the returned event to end it."""
        asked, is_over = await asyncio.wait_for(self._waits.get(), allow_s(60))
        assert asked == seconds
        return is_over

    async def end(self, seconds: float) -> None:
        (await self.begin(seconds)).set()

    def __len__(self) -> int:
        return self._waits.qsize()


async def kill(process: subprocess.Popen[bytes], manager: Manager) -> None:
    """Kill a daemon and wait until the event loop has seen its end."""
    ended = asyncio.Event()
    Watch(manager.pid, manager.process_started_at, ended.set)
    process.kill()
    await asyncio.wait_for(ended.wait(), allow_s(60))


@pytest.fixture
async def losses() -> Losses:
    return Losses()


@pytest.fixture
async def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
async def start_watch(
    tmp_path: Path, losses: Losses, sleeps: Sleeps, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[], ManagerWatch]]:
    """Yield a function that starts a watch. Its second call starts the watch of the next agent.

    A manager may take a minute to answer.
    """
    monkeypatch.setattr(manager_watch, "_CONNECT_S", 60.0)
    monkeypatch.setattr(manager_watch, "_PROBE_S", 60.0)
    watches: list[ManagerWatch] = []

    def start() -> ManagerWatch:
        watch = ManagerWatch(tmp_path / "manager.json", losses, losses.cut_off.append, sleep=sleeps)
        watches.append(watch)
        return watch

    yield start
    for watch in watches:
        watch.close()
        watch.close()  # may be repeated


@pytest.fixture
def watch(start_watch: Callable[[], ManagerWatch]) -> ManagerWatch:
    return start_watch()


async def test_a_node_that_has_left_its_cluster(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watch.watch(manager)
        await kill(process, manager)
        await sleeps.end(SETTLE_S)
        assert await losses.next() == "its node has left the Ray cluster"
    assert losses.cut_off == ["Ray's last daemon here has ended"]
    assert not losses, "reported once"


@pytest.mark.parametrize("promised_s", [15.0, 0.0])
async def test_no_other_service_shortens_the_grace_of_kernels(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, promised_s: float
) -> None:
    watch.promised_s = lambda: promised_s
    with daemon("") as (process, manager):
        watch.watch(replace(manager, grace_s=15.0))
        watch.watch(replace(manager, grace_s=3.0))
        await kill(process, manager)
        await sleeps.end(SETTLE_S)
        await sleeps.end(promised_s or 3.0)
        assert f"did not come back within {promised_s or 3:g} s" in await losses.next()


async def test_the_next_daemon_does_not_shorten_the_grace_of_kernels(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps
) -> None:
    """The time at which they end is known as soon as the daemon has ended."""
    watch.promised_s = lambda: 15.0
    with daemon("") as (first, before), daemon("") as (second, after):
        watch.watch(replace(before, grace_s=15.0))
        began = time.time()
        await kill(first, before)
        await sleeps.end(SETTLE_S)
        assert watch.ends_at is not None
        assert began + 15 <= watch.ends_at <= time.time() + 15 + SETTLE_S
        await sleeps.begin(15.0)
        watch.watch(replace(after, grace_s=3.0))
        assert watch.ends_at is None
        await kill(second, after)
        await sleeps.end(SETTLE_S)
        await sleeps.end(15.0)
        assert "did not come back within 15 s" in await losses.next()


async def test_a_node_has_not_left_while_one_of_its_daemons_lives(
    watch: ManagerWatch,
    start_watch: Callable[[], ManagerWatch],
    losses: Losses,
    sleeps: Sleeps,
    answering: str,
) -> None:
    with daemon(answering) as (first, one), daemon(answering) as (second, other):
        watch.watch(one)
        watch.watch(other)
        await kill(first, one)
        assert not watch.is_cut_off
        watch.close()
        following = start_watch()
        following.resume()
        await asyncio.sleep(0)  # the end of the first daemon is reported in the next step
        assert not following.is_cut_off
        assert not sleeps
        await kill(second, other)
        await sleeps.end(SETTLE_S)
        assert "has left" in await losses.next()


async def test_a_daemon_may_report_that_its_manager_has_ended_while_another_one_answers(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watch.watch(manager)
        watch.watch(replace(manager, is_gone=True))
        await kill(process, manager)
        await sleeps.end(SETTLE_S)
        await sleeps.end(60.0)
        assert await losses.next() == "the Ray cluster did not come back within 60 s"


async def test_a_daemon_may_end_while_its_process_goes_on(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, answering: str
) -> None:
    with daemon(answering) as (_, manager), daemon(answering) as (_, other):
        watch.watch(manager)
        watch.watch(other)
        watch.watch(replace(manager, has_left=True))
        watch.watch(replace(manager, has_left=True))
        assert not watch.is_cut_off
        watch.watch(replace(other, has_left=True))
        assert watch.is_cut_off
        await sleeps.end(SETTLE_S)
        assert "has left" in await losses.next()


@pytest.mark.parametrize(
    ("prints", "reason"),
    [
        ("mine", "its node has left the Ray cluster"),
        ("another", "its node did not come back to the Ray cluster within 60 s"),
        ("", "its node has left the Ray cluster"),
    ],
)
async def test_another_cluster_at_the_same_address_does_not_count(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, answering: str, prints: str, reason: str
) -> None:
    with daemon(answering) as (process, manager):
        watch.watch(replace(manager, cluster_id="mine", probe=("echo", prints)))
        await kill(process, manager)
        await sleeps.end(SETTLE_S)
        if prints == "another":
            await sleeps.end(60.0)
        assert await losses.next() == reason


async def test_the_node_has_left_if_the_cluster_id_cannot_be_read(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watch.watch(replace(manager, cluster_id="mine", probe=("/nonexistent",)))
        await kill(process, manager)
        await sleeps.end(SETTLE_S)
        assert "has left" in await losses.next()


@pytest.mark.parametrize("address", [NOWHERE, "nonsense", "127.0.0.1:"])
async def test_a_manager_that_is_away_has_a_grace(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, address: str
) -> None:
    with daemon(address) as (process, manager):
        watch.watch(manager)
        await kill(process, manager)
        await sleeps.end(SETTLE_S)
        grace_is_over = await sleeps.begin(60.0)
        assert not losses
        grace_is_over.set()
        assert await losses.next() == "the Ray cluster did not come back within 60 s"


async def test_a_manager_that_is_back_at_once_was_away(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps
) -> None:
    """The manager does not answer when its daemon ends, but soon after. It was away, and has not removed the node."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with daemon(f"127.0.0.1:{listener.getsockname()[1]}") as (process, manager):
            watch.watch(manager)
            await kill(process, manager)
            has_settled = await sleeps.begin(SETTLE_S)
            listener.listen()
            has_settled.set()
            await sleeps.end(60.0)
            said = "its node did not come back to the Ray cluster within 60 s"
            assert await losses.next() == said


async def test_the_same_cluster_comes_back_within_the_grace(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, answering: str
) -> None:
    with daemon(NOWHERE) as (first, before), daemon(answering) as (second, after):
        watch.watch(before)
        await kill(first, before)
        await sleeps.end(SETTLE_S)
        grace_is_over = await sleeps.begin(60.0)
        assert watch.is_cut_off
        watch.watch(after)
        assert not watch.is_cut_off
        grace_is_over.set()
        await kill(second, after)
        await sleeps.end(SETTLE_S)
        assert "has left" in await losses.next()
        assert not losses, "the grace had no effect after the return"


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_the_next_agent_watches_the_same_daemons(
    watch: ManagerWatch,
    start_watch: Callable[[], ManagerWatch],
    losses: Losses,
    sleeps: Sleeps,
    answering: str,
    dies: str,
) -> None:
    with daemon(answering) as (process, manager):
        watch.watch(manager)
        watch.close()
        if dies == "before":
            process.kill()
            process.wait()
        start_watch().resume()
        process.kill()
        await sleeps.end(SETTLE_S)
        assert "has left" in await losses.next()


async def test_a_closed_watch_reports_nothing(watch: ManagerWatch, losses: Losses, answering: str) -> None:
    with daemon(answering) as (process, manager):
        watch.watch(manager)
        watch.close()
        await kill(process, manager)
        assert not losses.cut_off


async def test_a_watch_that_is_closed_after_the_end_of_a_daemon_reports_no_loss(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, answering: str
) -> None:
    with daemon(answering) as (process, manager):
        watch.watch(manager)
        await kill(process, manager)
        has_settled = await sleeps.begin(SETTLE_S)
        watch.close()
        has_settled.set()
        await asyncio.sleep(0)  # the task would go on in this step
        assert not losses


async def test_a_missing_or_unreadable_file_means_nothing_to_watch(
    tmp_path: Path, watch: ManagerWatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.resume()
    assert not caplog.text
    (tmp_path / "manager.json").write_text('{"name": "Ray"}')
    watch.resume()
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("is_same", [True, False])
async def test_kernels_live_on_until_a_daemon_begins_on_their_node(
    watch: ManagerWatch, losses: Losses, sleeps: Sleeps, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    found: list[DaemonCommand] = []
    monkeypatch.setattr(manager_watch, "find_daemon", lambda known, after: found[0] if found else None)
    with daemon("") as (process, manager):
        watch.watch(replace(manager, command=RAYLET))
        await kill(process, manager)
        await sleeps.end(SETTLE_S)
        for _ in range(400):
            await sleeps.end(LOOK_S)
        is_over = await sleeps.begin(LOOK_S)
        assert (watch.is_cut_off, watch.ends_at, len(losses)) == (True, None, 0)
        found.append(RAYLET if is_same else replace(RAYLET, cluster="--gcs-address=10.0.0.9:6379"))
        is_over.set()
        if is_same:
            is_over = await sleeps.begin(LOOK_S)
            assert watch.ends_at is not None
            assert len(losses.cut_off) == 2
            found.clear()
            is_over.set()
            is_over = await sleeps.begin(LOOK_S)
            assert watch.ends_at is None, "it has ended again"
            found.append(RAYLET)
            is_over.set()
            for _ in range(60):
                await sleeps.end(LOOK_S)
            assert await losses.next() == "nobody claimed its place in 60 s since the Ray cluster was back"
        else:
            assert await losses.next() == "another Ray cluster has begun on its node"


def test_a_daemon_is_known_by_its_name_and_its_node() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        node = f"--node_ip_address=here-{probe.getsockname()[1]}"
    known = DaemonCommand(name="sleep", node=node, cluster="--gcs-address=one")
    assert find_daemon(known, 0.0) is None
    words = ["--gcs-address=two", node]
    with subprocess.Popen(
        ["bash", "-c", "exec 3<&0; read -r line <&3", *words], stdin=subprocess.PIPE
    ) as process:
        try:
            assert find_daemon(known, 0.0) is None, "another program"
            found = find_daemon(replace(known, name="bash"), 0.0)
            assert found == replace(known, name="bash", cluster="--gcs-address=two")
            assert find_daemon(found, start_time(process.pid)) is None, (
                "it has shared the node with the ended one"
            )
        finally:
            process.kill()
