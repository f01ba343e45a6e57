"""The watch over the promises of others, with real files and processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kit.machine.daemons import wait_gone
from roost.launchers.daemon.inotify import Inotify
from roost.launchers.daemon.process import start_time
from roost.launchers.machine_book import others as module
from roost.launchers.machine_book.book import MachineBook, View
from roost.launchers.machine_book.folder_reader import Held
from roost.launchers.machine_book.others import OthersWatch
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import (
    NamedProcess,
    Promise,
    find_pid_namespace,
    has_ended,
    name_file,
    write_promise,
)
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify and pidfds are Linux's")
NEVER_S = 1e6


class Reader:
    """An agent that reads the book again whenever its watch calls."""

    def __init__(self, folder: Path, *, most: int = 256, again_s: float = NEVER_S) -> None:
        place = Place(folder, "chosen")
        self._book = MachineBook(
            "reader", cpus=4, memory_bytes=1000, find=lambda: place, list_folders=lambda: (folder,)
        )
        self.watch = OthersWatch(self.look, most=most, again_s=again_s)
        self.view = View()
        self.looks = 0
        self._looked = asyncio.Event()

    def look(self) -> None:
        self.looks += 1
        self.view = self._book.look()
        self.watch.follow(self.view.others)
        self._looked.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` after a look. The watch alone causes looks."""
        while not holds():
            self._looked.clear()
            await asyncio.wait_for(self._looked.wait(), allow_s(30))

    async def until_cpus(self, cpus: float) -> None:
        await self.until(lambda: self.view.cpus == cpus)

    async def settle(self) -> None:
        """Look for the first time, and once more as the watch does after each new promise."""
        self.look()
        if self.view.others:
            await self.until(lambda: self.looks == 2)


class Others:
    """Agents and kernels of others: each is a process, and has nothing to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "1000"])
        self._processes.append(process)
        return process

    def promise(self, agent: subprocess.Popen[bytes], *kernels: subprocess.Popen[bytes]) -> Promise:
        """Write a promise of one CPU."""
        named = [NamedProcess(pid=each.pid, started_at=start_time(each.pid)) for each in (agent, *kernels)]
        promise = Promise(
            name=name_file(os.getuid(), "others", str(len(list(self.folder.iterdir())))),
            agent=named[0],
            processes=tuple(named[1:]),
            pid_namespace=find_pid_namespace(),
            cpus=1.0,
        )
        write_promise(self.folder, promise)
        return promise

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(allow_s(30))

    def close(self) -> None:
        for process in self._processes:
            self.kill(process)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Others]:
    others = Others(tmp_path)
    yield others
    others.close()


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.watch.close()


@pytest.fixture
def list_opened() -> Callable[[], list[str]]:
    """Return a function that lists the descriptors that a watch may have opened since the test began."""
    before = _list_descriptors()

    def list_opened() -> list[str]:
        opened = _list_descriptors().items() - before.items()
        return sorted(link for _, link in opened if "inotify" in link or "pidfd" in link)

    return list_opened


def _list_descriptors() -> dict[str, str]:
    links = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            links[name] = os.readlink(f"/proc/self/fd/{name}")
    return links


def list_inherited() -> str:
    """Return the descriptors of a new child of this process."""
    return subprocess.check_output(["ls", "-l", "/proc/self/fd"], text=True, close_fds=False)


async def test_the_removal_of_a_file_is_noticed(others: Others, reader: Reader) -> None:
    agent = others.begin()
    first, _ = others.promise(agent), others.promise(agent)
    await reader.settle()
    assert reader.view.cpus == 2
    (others.folder / first.name).unlink()
    await reader.until_cpus(1)


async def test_a_replaced_file_is_noticed_and_watched_again(others: Others, reader: Reader) -> None:
    promise = others.promise(others.begin())
    await reader.settle()
    for cpus in (3.0, 2.0):
        write_promise(others.folder, replace(promise, cpus=cpus))
        await reader.until_cpus(cpus)
    (others.folder / promise.name).rename(others.folder / "elsewhere")
    await reader.until_cpus(0)


async def test_a_file_that_somebody_has_open_is_noticed_when_it_is_removed(
    others: Others, reader: Reader
) -> None:
    promise = others.promise(others.begin())
    await reader.settle()
    descriptor = os.open(others.folder / promise.name, os.O_RDONLY)
    try:
        (others.folder / promise.name).unlink()
        await reader.until_cpus(0)
    finally:
        os.close(descriptor)


async def test_the_end_of_an_agent_without_a_kernel_ends_its_promises(
    list_opened: Callable[[], list[str]], others: Others, reader: Reader
) -> None:
    agent, other = others.begin(), others.begin()
    for each in (agent, agent, other):
        others.promise(each)
    await reader.settle()
    assert len(list_opened()) == reader.watch.descriptors == 3, "one for each agent, one for all files"
    others.kill(agent)
    await reader.until_cpus(1)


def test_a_process_that_this_user_must_not_see_has_ended_once_it_is_a_zombie(others: Others) -> None:
    """With `hidepid`, a signal cannot tell a zombie from a living process."""
    runs, zombie = others.begin(), others.begin()
    zombie.kill()
    assert wait_gone(zombie.pid)
    assert not has_ended(runs.pid)
    assert has_ended(zombie.pid)
    zombie.wait(allow_s(30))
    assert has_ended(zombie.pid)


async def test_a_promise_lasts_until_its_last_process_has_ended(others: Others, reader: Reader) -> None:
    agent, kernel, worker = others.begin(), others.begin(), others.begin()
    others.promise(agent, kernel, worker)
    await reader.settle()
    others.kill(kernel)  # the watch follows the agent
    for process in (agent, worker):
        assert reader.view.cpus == 1
        looks = reader.looks
        others.kill(process)
        await reader.until(lambda looks=looks: reader.looks > looks)  # type: ignore[misc]
    await reader.until_cpus(0)


async def test_a_change_between_the_look_and_the_watch_is_noticed(others: Others, reader: Reader) -> None:
    promise, agent = others.promise(others.begin()), others.begin()
    others.promise(agent)
    view = reader._book.look()
    (others.folder / promise.name).unlink()
    others.kill(agent)
    reader.view = view
    reader.watch.follow(view.others)
    await reader.until_cpus(0)


async def test_a_promise_of_a_watched_agent_that_ends_at_once_is_noticed(
    others: Others, reader: Reader
) -> None:
    agent = others.begin()
    others.promise(agent)
    await reader.settle()
    promise = others.promise(agent)
    reader.view = reader._book.look()
    (others.folder / promise.name).unlink()
    reader.watch.follow(reader.view.others)
    await reader.until_cpus(1)


async def test_without_promises_nothing_is_open(
    list_opened: Callable[[], list[str]], others: Others, reader: Reader
) -> None:
    await reader.settle()
    assert (list_opened(), reader.watch.descriptors) == ([], 0)
    promise = others.promise(others.begin())
    reader.look()
    assert list_opened() != []
    (others.folder / promise.name).unlink()
    await reader.until_cpus(0)
    assert (list_opened(), reader.watch.descriptors) == ([], 0)
    others.promise(others.begin())
    reader.look()
    reader.watch.close()
    reader.watch.close()
    assert (list_opened(), reader.watch.descriptors) == ([], 0)


async def test_a_started_process_inherits_no_descriptor(
    list_opened: Callable[[], list[str]], others: Others, reader: Reader
) -> None:
    others.promise(others.begin())
    await reader.settle()
    assert len(list_opened()) == 2
    listed = list_inherited()
    assert "pipe" in listed
    assert "pidfd" not in listed
    assert "inotify" not in listed


async def test_nothing_happens_while_nothing_changes(
    others: Others, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has no timer and no work. It follows the same promises again without a system call."""
    promise = others.promise(others.begin())
    await reader.settle()
    looks = reader.looks
    monkeypatch.setattr(Inotify, "add", pytest.fail)
    monkeypatch.setattr(os, "pidfd_open", pytest.fail)
    monkeypatch.setattr(module, "find_living", pytest.fail)
    for _ in range(100):
        reader.watch.follow(reader.view.others)
    monkeypatch.undo()
    (others.folder / promise.name).unlink()
    await reader.until_cpus(0)
    assert reader.looks == looks + 1


async def test_a_stranger_who_touches_a_file_all_the_time_keeps_nobody_busy(
    others: Others, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", NEVER_S)
    promise = others.promise(others.begin())
    await reader.settle()
    for _ in range(100):
        os.utime(others.folder / promise.name)
        await asyncio.sleep(0)
    assert reader.looks == 2
    assert "soon" in reader.watch._timers, "the touch is noticed, and waits for the end of the pause"


async def test_what_cannot_be_watched_is_looked_at_again_and_again(
    list_opened: Callable[[], list[str]], others: Others, tmp_path: Path
) -> None:
    promises = [others.promise(others.begin()) for _ in range(3)]
    reader = Reader(tmp_path, most=2, again_s=0.01)
    reader.look()
    try:
        assert len(list_opened()) == reader.watch.descriptors == 3
        for cpus in (2, 1, 0):
            (others.folder / promises[cpus].name).unlink()
            await reader.until_cpus(cpus)
    finally:
        reader.watch.close()


def test_a_user_with_many_promises_leaves_watches_to_others() -> None:
    promise = Promise(name="", agent=NamedProcess(pid=1, started_at=1.0))
    held = [Held(uid, Path(f"{uid}-{number}"), promise) for uid in (1, 2) for number in range(9)]
    chosen = module._choose([*held, Held(3, Path("3-0"), promise)], 6)
    assert [each.path.name for each in chosen] == ["1-0", "2-0", "3-0", "1-1", "2-1", "1-2"]
    assert module._choose(held[:6], 6) == held[:6]


@pytest.mark.parametrize("lacking", ["inotify", "pidfd"])
async def test_a_system_without_events_is_looked_at_again_and_again(
    lacking: str, others: Others, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "too many open files")

    if lacking == "inotify":
        monkeypatch.setattr(Inotify, "add", lambda *_: -1)
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse)
    agent = others.begin()
    promise, _ = others.promise(agent), others.promise(agent)
    reader = Reader(tmp_path, again_s=0.01)
    reader.look()
    try:
        (others.folder / promise.name).unlink()
        await reader.until_cpus(1)
        others.kill(agent)
        await reader.until_cpus(0)
    finally:
        reader.watch.close()
