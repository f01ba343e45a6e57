"""Several Unix users on one machine: nothing is promised twice, and nobody gains by what he writes into the book."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.machine.racing_users import KIT, race, skip_without_namespaces
from roost.launchers.daemon.process import start_time
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.machine_book.folder_reader import MOST_OF_USER
from roost.launchers.machine_book.lock import DEADLINE_S, find_holders
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import MOST_BYTES, find_pid_namespace, name_file
from roost.launchers.machine_book.rules import Amounts, MachineRules, RulesReader
from roost.testing.deadlines import allow_s

ROUNDS = int(os.environ.get("ROOST_ROUNDS", "1"))
OTHER = 3001

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]


@pytest.mark.parametrize(
    ("way", "users", "kills"),
    [("installed", 2, 0), ("installed", 5, 10), ("shared", 2, 10), ("shared", 5, 0)],
)
def test_users_who_race_never_hold_a_slice_twice(way: str, users: int, kills: int) -> None:
    """`ROOST_ROUNDS=25` has a thousand rounds of each race."""
    result = race(way, users=users, rounds=40 * ROUNDS, kills=kills * ROUNDS)
    print(json.dumps(result))
    assert result["held_twice"] == {}
    assert result["left"] == []
    assert result["killed"] >= kills * ROUNDS / 2
    assert result["most_kernels"] > 1
    for counts in result["users"]:
        assert counts["granted"] > 0
        assert counts["left"] == 0
    assert sum(counts.get("conflict", 0) for counts in result["users"]) > 0


def test_users_who_do_not_share_a_book_are_seen_to_hold_a_slice_twice() -> None:
    """The look from outside would notice."""
    assert race("alone", users=2, rounds=40, kills=0)["held_twice"]


class Strangers:
    """The folder of a book, in which a stranger writes, and a book of this user in it."""

    def __init__(self, folder: Path, rules: MachineRules) -> None:
        self.folder = folder
        self.book = MachineBook(
            "mine",
            cpus=4,
            memory_bytes=1000,
            find=lambda: Place(folder, "chosen"),
            list_folders=lambda: (folder,),
            rules=RulesReader(lambda: rules),
        )

    def build(self, name: str = "", **fields: Any) -> tuple[Path, dict[str, Any]]:
        """Return the file and the content of a stranger's promise of GPU 0, of a process that lives."""
        path = self.folder / (name or name_file(OTHER, "agent", "lease"))
        living = {"pid": self.living.pid, "started_at": start_time(self.living.pid)}
        content = {
            "name": path.name,
            "agent": living,
            "pid_namespace": find_pid_namespace(),
            "devices": {"0": 1.0},
        }
        return path, {**content, **fields}

    def plant(self, path: Path, content: Any) -> Path:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        os.chown(path, OTHER, OTHER)
        return path

    def promised(self) -> dict[str, float]:
        """Return what counts of the promises of others."""
        view = self.book.look()
        amounts = {"cpus": float(view.cpus), "memory": view.memory_bytes, **view.devices}
        return {name: float(amount) for name, amount in amounts.items() if amount}

    def reasons(self) -> list[str]:
        return [stranger.reason for stranger in self.book.read_all()[1]]

    def __enter__(self) -> Strangers:
        self.living = subprocess.Popen(["sleep", "600"], user=OTHER, group=OTHER, extra_groups=[])
        return self

    def __exit__(self, *_: object) -> None:
        self.living.kill()
        self.living.wait()
        self.book.close()


@pytest.fixture
def strangers(tmp_path: Path) -> Iterator[Strangers]:
    with Strangers(tmp_path, MachineRules()) as strangers:
        yield strangers


def test_a_promise_of_a_living_process_counts(strangers: Strangers) -> None:
    path, content = strangers.build(cpus=1, memory_bytes=5)
    strangers.plant(path, content)
    assert strangers.promised() == {"cpus": 1, "memory": 5, "0": 1}
    strangers.living.kill()
    strangers.living.wait()
    assert strangers.promised() == {}
    assert strangers.reasons() == ["is left by processes that have ended"]


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another uid's process": (lambda mine: {**mine, "agent": {"pid": 1, "started_at": start_time(1)}}, "have ended"),
    "a dead pid": (lambda mine: {**mine, "agent": {"pid": 4_000_000, "started_at": 1.0}}, "have ended"),
    "a pid that cannot be": (lambda mine: {**mine, "agent": {"pid": 1 << 40, "started_at": 1.0}}, "have ended"),
    "a negative pid": (lambda mine: {**mine, "agent": {"pid": -1, "started_at": 1.0}}, "have ended"),
    "another start time": (lambda mine: {**mine, "agent": {**mine["agent"], "started_at": 1.0}}, "have ended"),
    "a launch long ago": (
        lambda mine: {**mine, "agent": {"pid": 4_000_000, "started_at": 1.0}, "launching_since": 1.0},
        "have ended",
    ),
    "another container": (lambda mine: {**mine, "pid_namespace": "pid:[1]"}, "another container"),
    "another name": (lambda mine: {**mine, "name": "roost-0-x.json"}, "belongs into another file"),
    "a share of 7": (lambda mine: {**mine, "devices": {"0": 7.0}}, "not between 0 and 1"),
    "a negative share": (lambda mine: {**mine, "devices": {"0": -1.0}}, "not between 0 and 1"),
    "negative CPUs": (lambda mine: {**mine, "cpus": -4}, "negative amounts"),
    "text for CPUs": (lambda mine: {**mine, "cpus": "all"}, "no promise that can be read"),
    "infinite CPUs": (lambda mine: json.dumps({**mine, "cpus": 0}).replace('"cpus": 0', '"cpus": 1e999'), "no promise"),
    "no JSON": (lambda mine: "{", "no promise that can be read"),
    "depth": (lambda mine: "[" * 8000 + "]" * 8000, "no promise that can be read"),
    "size": (lambda mine: json.dumps({**mine, "more": "x" * MOST_BYTES}), "has more than"),
    "nothing": (lambda mine: "", "no promise that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_counts_nothing(strangers: Strangers, lie: str) -> None:
    path, content = strangers.build()
    tell, reason = LIES[lie]
    strangers.plant(path, tell(content))
    assert strangers.promised() == {}
    assert len(strangers.reasons()) == 1
    assert reason in strangers.reasons()[0]


def test_files_that_are_none_count_nothing(strangers: Strangers, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    names = [strangers.folder / name_file(OTHER, "agent", str(number)) for number in range(4)]
    names[0].symlink_to(secret)
    os.mkfifo(names[1])
    names[2].mkdir()
    names[3].symlink_to("/dev/zero")
    for path in names:
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
    began = time.monotonic()
    assert strangers.promised() == {}
    assert time.monotonic() - began < allow_s(DEADLINE_S)
    assert len(strangers.reasons()) == len(names)


def test_a_file_with_another_users_name_counts_nothing(strangers: Strangers) -> None:
    path, content = strangers.build(name_file(0, "agent", "lease"))
    strangers.plant(path, content)
    assert strangers.promised() == {}
    assert strangers.reasons() == [f"belongs to uid {OTHER}, not to the user in its name"]


def test_a_link_to_a_promise_does_not_count_and_changes_nothing(strangers: Strangers) -> None:
    """With `fs.protected_hardlinks=0`, a user may link another's file."""
    path, content = strangers.build()
    strangers.plant(path, content)
    os.link(path, strangers.folder / name_file(OTHER, "agent", "link"))
    assert strangers.promised() == {"0": 1}


def test_a_newer_roost_holds_its_devices_wholly(strangers: Strangers) -> None:
    path, content = strangers.build(version=99, devices={"0": 0.25}, shares_of_memory={"0": "all"})
    strangers.plant(path, content)
    assert strangers.promised() == {"0": 1}


def test_a_time_in_the_future_does_not_matter(strangers: Strangers) -> None:
    path, content = strangers.build(since=time.time() + 1e9)
    strangers.plant(path, content)
    assert strangers.promised() == {"0": 1}


def test_what_is_above_the_limit_of_its_user_does_not_count(tmp_path: Path) -> None:
    rules = MachineRules(users={str(OTHER): Amounts(gpus=1)})
    with Strangers(tmp_path, rules) as strangers:
        for number in range(3):
            path, content = strangers.build(
                name_file(OTHER, "agent", str(number)), devices={str(number): 1.0}, since=float(number)
            )
            strangers.plant(path, content)
        assert strangers.promised() == {"0": 1}
        reasons = [stranger.reason for stranger in strangers.book.read_all(rules)[1]]
        assert reasons == ["claims more than its user may hold"] * 2


def test_a_stranger_who_takes_the_name_of_a_promise_stops_nobody(strangers: Strangers) -> None:
    """Root may replace any file, so that the agent is another user here."""
    strangers.folder.chmod(0o1777)
    for parent in strangers.folder.parents[:3]:
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    taken = strangers.plant(strangers.folder / name_file(3002, "mine", "again"), "")
    os.seteuid(3002)
    try:
        own = MachineBook(
            "mine",
            cpus=4,
            memory_bytes=1000,
            find=lambda: Place(strangers.folder, "chosen"),
            list_folders=lambda: (strangers.folder,),
            uid=3002,
        )
        own.promise("again", cpus=1, memory_bytes=0, devices={})
        own.begin_launch("again")
        assert len(list(strangers.folder.iterdir())) == 2
        own.give_back("again")
    finally:
        os.seteuid(0)
    assert list(strangers.folder.iterdir()) == [taken]


@pytest.mark.parametrize(
    "rules", [MachineRules(), MachineRules(is_given=True, users={"*": Amounts(cpus=50)})]
)
def test_ten_thousand_files_stop_nobody(tmp_path: Path, rules: MachineRules) -> None:
    with Strangers(tmp_path, rules) as strangers:
        for number in range(10_000):
            path, content = strangers.build(name_file(OTHER, "agent", str(number)), devices={}, cpus=0.01)
            strangers.plant(path, content)
        times = []
        for _ in range(5):
            began = time.thread_time()
            strangers.book.look()
            times.append(time.thread_time() - began)
        print(f"first look {times[0] * 1e3:.0f} ms, later {min(times[1:]) * 1e3:.1f} ms")
        assert times[0] < allow_s(DEADLINE_S)
        assert min(times[1:]) < allow_s(0.2 * DEADLINE_S)
        assert len(strangers.book.read_all()[0]) == MOST_OF_USER


def hold_as_another_user(folder: Path) -> subprocess.Popen[bytes]:
    """Return a process of another user that holds the lock on a folder."""
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(1, flush=True);"
        "sys.stdin.read()"
    )
    for parent in (folder, *folder.parents[:3]):
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    holder = subprocess.Popen(
        ["/usr/bin/python3", "-c", code, str(folder)],
        user=OTHER, group=OTHER, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline()
    return holder


async def test_who_holds_the_lock_for_ever_is_named_and_stops_nobody(
    strangers: Strangers, caplog: pytest.LogCaptureFixture
) -> None:
    with hold_as_another_user(strangers.folder) as holder:
        assert f"process {holder.pid} (python3" in find_holders(strangers.folder)[0]
        began = time.monotonic()
        async with strangers.book.turn():
            strangers.book.promise("mine", cpus=1, memory_bytes=0, devices={})
        assert time.monotonic() - began < allow_s(2 * DEADLINE_S)
        holder.kill()
    assert f"by process {holder.pid} (python3) of the user with uid {OTHER}" in caplog.text
    assert len(strangers.book.read_all()[0]) == 1
    strangers.book.give_back("mine")
    assert list(strangers.folder.glob("roost-*")) == []


HIDDEN = """
import os, subprocess, sys, tempfile
from pathlib import Path

import roost
from kit.machine.racing_users import KIT, open_to_all

subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
open_to_all(Path(sys.base_prefix), Path(sys.prefix), Path(roost.__path__[0]), KIT)
os.setgroups([])
os.setgid(3002)
os.setuid(3002)
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.machine_book.places import Place

folder = Path(sys.argv[1])
assert not os.path.exists(f"/proc/{sys.argv[2]}"), "the process is seen"
book = MachineBook("b", cpus=1, memory_bytes=1, find=lambda: Place(folder, "chosen"), list_folders=lambda: [folder])
print(len(book.look().others))
sys.stdin.readline()
print(len(book.look().others))
"""


def test_a_process_that_may_not_be_seen_counts_as_alive(strangers: Strangers) -> None:
    skip_without_namespaces()
    path, content = strangers.build()
    strangers.plant(path, content)
    for parent in (strangers.folder, *strangers.folder.parents[:3]):
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    command = [sys.executable, "-c", HIDDEN, str(strangers.folder), str(strangers.living.pid)]
    with subprocess.Popen(
        ["unshare", "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(KIT)},
    ) as user:  # fmt: skip
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == "1\n"
        strangers.living.kill()
        strangers.living.wait()
        print(file=user.stdin, flush=True)
        assert user.stdout.readline() == "0\n"
