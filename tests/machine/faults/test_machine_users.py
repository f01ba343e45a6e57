"""Several Unix users on one machine: nothing is promised twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kit.machine.racing_users import KIT, race, skip_without_namespaces
from roost.launchers.daemon.process import start_time
from roost.launchers.machine_book.book import Conflict, MachineBook
from roost.launchers.machine_book.lock import DEADLINE_S
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import (
    Keeper,
    Promise,
    encode_promise,
    name_file,
    read_folder,
    write_file,
)
from roost.launchers.machine_book.rules import MachineRules
from roost.testing.deadlines import allow_s

ROUNDS = int(os.environ.get("ROOST_ROUNDS", "1"))
USERS = (3001, 3002)
OTHER = USERS[0]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


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


def open_book(folder: Path, owner: str) -> MachineBook:
    """Return the book in a folder of the test, for the agent that `owner` names."""
    place = Place(folder, "installed")
    return MachineBook(owner, cpus=4, memory_bytes=1000, find=lambda: place, read=MachineRules)


@pytest.fixture
def book_folder() -> Iterator[Path]:
    """Return a folder for the book, in one which all users may enter and change."""
    with TemporaryDirectory(prefix="book-", dir="/tmp") as name:
        folder = Path(name, "book")
        folder.mkdir()
        for each in (folder, folder.parent):
            each.chmod(0o1777)
        yield folder


CONTENDER = """
import asyncio, os, sys
from pathlib import Path

from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.leases.machine_share import MachineShare
from roost.launchers.machine_book.book import Conflict, MachineBook
from roost.launchers.machine_book.places import Place
from roost.launchers.protocol.messages import Lease, Owner, Reserve
from roost.placement.model import Device, Request

folder, user = Path(sys.argv[1]), int(sys.argv[2])
os.setgroups([])  # now, because the other user may not read this Python
os.setgid(user)
os.setuid(user)
ledger = LeaseLedger(folder.with_name(str(user)), cpus=4, memory_bytes=1000, devices=[Device(id="0")])
book = MachineBook(str(user), cpus=4, memory_bytes=1000, find=lambda: Place(folder, "installed"))
share = MachineShare(ledger, book)
lease = Lease(id="a", kernel_id="a", owner=Owner(user="ada"), request=Request(gpus=1))
for order in sys.stdin:
    if order == "give back\\n":
        share.give_back("a")
        ledger.release("a")
        print("given back", flush=True)
        continue
    try:
        print(*asyncio.run(share.reserve(Reserve(lease=lease), ledger.reserve)).device_ids, flush=True)
    except Conflict:
        print("refused", flush=True)
"""
"""A program of another user. It reserves GPU 0, and gives it back when it is asked to."""


def ask(contender: subprocess.Popen[str], order: str) -> None:
    assert contender.stdin is not None
    print(order, file=contender.stdin, flush=True)


def read(contender: subprocess.Popen[str]) -> str:
    assert contender.stdout is not None
    return contender.stdout.readline().strip()


def test_two_users_who_want_one_gpu_never_both_get_it(book_folder: Path) -> None:
    with ExitStack() as started:
        contenders = [
            started.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CONTENDER, str(book_folder), str(uid)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for uid in USERS
        ]
        for number in range(200 * ROUNDS):
            for each in contenders if number % 2 else contenders[::-1]:
                ask(each, "reserve")
            answers = [read(each) for each in contenders]
            assert sorted(answers) == ["0", "refused"], number
            winner, loser = contenders if answers[0] == "0" else contenders[::-1]
            ask(loser, "reserve")
            assert read(loser) == "refused", "the GPU is held"
            ask(winner, "give back")
            assert read(winner) == "given back"
    assert list(book_folder.iterdir()) == []


@pytest.fixture
def living() -> Iterator[Keeper]:
    """Yield a process of another user."""
    with subprocess.Popen(["sleep", "600"], user=OTHER, group=OTHER, extra_groups=[]) as process:
        yield Keeper(pid=process.pid, started_at=start_time(process.pid))
        process.kill()


def plant(folder: Path, keeper: Keeper) -> Path:
    """Write a file of another user, whose process `keeper` has promised GPU 0. Return the file."""
    path = folder / name_file(OTHER, "agent")
    write_file(path, keeper, {"a": encode_promise(Promise(devices={"0": 1.0}))})
    os.chown(path, OTHER, OTHER)
    return path


def test_files_that_are_none_count_nothing(book_folder: Path, living: Keeper) -> None:
    plant(book_folder, living)
    secret = book_folder.with_name("secret")
    secret.write_text("x")
    names = [book_folder / name_file(OTHER, str(number)) for number in range(5)]
    names[0].symlink_to(secret)
    os.mkfifo(names[1])
    names[2].mkdir()
    names[3].symlink_to("/dev/zero")
    names[4].write_text("[" * 8000 + "]" * 8000)
    for path in names:
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
    began = time.monotonic()
    view = open_book(book_folder, "mine").look()
    assert time.monotonic() - began < allow_s(DEADLINE_S)
    assert view.devices == {"0": 1.0}
    unfit = [each for each in read_folder(book_folder).values() if each.problem]
    assert len(unfit) == len(names)
    assert {each.uid for each in unfit} == {OTHER}


async def test_who_holds_the_lock_for_long_is_named_and_nothing_is_promised(book_folder: Path) -> None:
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(1, flush=True);"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(  # noqa: ASYNC220
        ["/usr/bin/python3", "-c", code, str(book_folder)],
        user=OTHER, group=OTHER, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    book = open_book(book_folder, "mine")
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        with pytest.raises(
            Conflict, match=rf"process {holder.pid} \(python3.*\) of the user with uid {OTHER}"
        ):
            async with book.turn():
                pass
        holder.kill()
    async with book.turn():
        book.promise("mine", Promise(cpus=1))
    book.give_back("mine")
    assert list(book_folder.iterdir()) == []


HIDDEN = """
import os, subprocess, sys
from pathlib import Path

import roost
from kit.machine.racing_users import KIT, open_to_all

subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
open_to_all(Path(sys.base_prefix), Path(sys.prefix), Path(roost.__path__[0]), KIT)
os.setgroups([])
os.setgid(3002)
os.setuid(3002)
from roost.launchers.machine_book.promise import list_living, read_folder

folder = Path(sys.argv[1])
assert not os.path.exists(f"/proc/{sys.argv[2]}"), "the process is seen"
print(len(list_living(read_folder(folder).values())))
sys.stdin.readline()
print(len(list_living(read_folder(folder).values())))
"""


def test_a_process_that_may_not_be_seen_counts_as_alive(book_folder: Path, living: Keeper) -> None:
    skip_without_namespaces()
    plant(book_folder, living)
    command = [sys.executable, "-c", HIDDEN, str(book_folder), str(living.pid)]
    with subprocess.Popen(
        ["unshare", "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(KIT)},
    ) as user:  # fmt: skip
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == "1\n"
        os.kill(living.pid, signal.SIGKILL)
        os.waitpid(living.pid, 0)
        print(file=user.stdin, flush=True)
        assert user.stdout.readline() == "0\n"
