"""`roost top --all`, on a book in a folder of the test. No service is asked."""

from __future__ import annotations

import fcntl
import os
import pwd
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.client import StubClient, document, run
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.machine_book.folder_reader import Held
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.rules import BadRules, MachineRules
from roost.scheduler.cli import holders as module

SINCE = time.mktime((2026, 3, 5, 10, 14, 0, 0, 0, -1))


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineBook:
    """Return the book of an agent, which `roost top --all` reads."""
    place = Place(tmp_path, "chosen")
    monkeypatch.setattr(module, "find_place", lambda: place)
    monkeypatch.setattr(module, "list_places", lambda: (tmp_path,))
    allow(monkeypatch, MachineRules())
    return MachineBook("agent", cpus=4, memory_bytes=0, find=lambda: place, list_folders=lambda: (tmp_path,))


def allow(monkeypatch: pytest.MonkeyPatch, rules: MachineRules | BadRules) -> None:
    class Reader:
        def current(self) -> MachineRules:
            if isinstance(rules, BadRules):
                raise rules
            return rules

    monkeypatch.setattr(module, "RulesReader", Reader)


def give_to(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """Let the first promise belong to another user."""
    read_all = MachineBook.read_all

    def read(self: MachineBook, rules: MachineRules) -> Any:
        held, strangers = read_all(self, rules)
        oldest = min(held, key=lambda each: each.promise.since)
        return [Held(uid, oldest.path, oldest.promise), *(each for each in held if each != oldest)], strangers

    monkeypatch.setattr(MachineBook, "read_all", read)


def promise_two(book: MachineBook) -> None:
    book.promise("new", cpus=0, memory_bytes=0, devices={"GPU-5ad": 1.0, "GPU-7": 0.25}, since=SINCE + 60)
    book.promise("old", cpus=2.5, memory_bytes=3 << 30, devices={}, since=SINCE)


def test_the_holders_are_listed_from_the_oldest(
    book: MachineBook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promise_two(book)
    give_to(monkeypatch, 987_654_321)
    code, out, problems = run(capsys, "top", "--all")
    assert (code, problems) == (0, "")
    assert [line.split("  ") for line in _squeeze(out)] == [
        ["USER", "CPUS", "MEMORY", "GPUS", "SINCE"],
        ["another user", "2.5", "3 GiB", "-", "2026-03-05 10:14"],
        [pwd.getpwuid(os.getuid()).pw_name, "-", "-", "1.25 (GPU-5ad, GPU-7: 25%)", "2026-03-05 10:15"],
    ]
    allow(monkeypatch, replace(MachineRules(), shows_names=True))
    assert _squeeze(run(capsys, "top", "--all")[1])[1].startswith("uid 987654321  2.5")


def _squeeze(out: str) -> list[str]:
    """Return the lines, with two blanks between the columns."""
    lines = []
    for line in out.splitlines():
        while "   " in line:
            line = line.replace("   ", "  ")
        lines.append(line.strip())
    return lines


def test_the_document_has_names_only_where_they_are_shown(
    book: MachineBook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promise_two(book)
    give_to(monkeypatch, 987_654_321)
    found = document(capsys, "top", "--all")
    assert found["problem"] == ""
    assert found["holders"] == [
        {
            "user": None,
            "is_own": False,
            "cpus": 2.5,
            "memory_bytes": 3 << 30,
            "devices": {},
            "since": SINCE,
        },
        {
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "is_own": True,
            "cpus": 0,
            "memory_bytes": 0,
            "devices": {"GPU-5ad": 1.0, "GPU-7": 0.25},
            "since": SINCE + 60,
        },
    ]


def test_the_nodes_of_this_machine_say_what_other_users_hold(
    client: StubClient,
    book: MachineBook,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promise_two(book)
    assert "ther users" not in run(capsys, "nodes")[1], "all are this user's"
    give_to(monkeypatch, 987_654_321)
    last = run(capsys, "nodes")[1].splitlines()[-1]
    assert last == "Other users hold 2.5 CPUs, 3 GiB of memory: see `roost top --all`."
    assert "ther users" not in run(capsys, "nodes", "--backend", "ray")[1]


def test_nothing_is_written_and_no_lock_is_taken(
    book: MachineBook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promise_two(book)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert len(document(capsys, "top", "--all")["holders"]) == 2
    finally:
        os.close(descriptor)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_bad_rules_are_reported_and_no_name_is_shown(
    book: MachineBook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promise_two(book)
    give_to(monkeypatch, 987_654_321)
    allow(monkeypatch, BadRules("/etc/roost/machine.toml: `gpus` must be a number"))
    code, out, problems = run(capsys, "top", "--all")
    assert code == 0
    assert "another user" in out
    assert problems == "roost: /etc/roost/machine.toml: `gpus` must be a number\n"


def test_a_machine_without_a_shared_folder_says_so(
    book: MachineBook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_place", lambda: Place(None, "nobody", "/tmp is private to this user"))
    _, out, problems = run(capsys, "top", "--all")
    assert out.splitlines() == ["USER  CPUS  MEMORY  GPUS  SINCE"]
    assert problems == "roost: nobody divides this machine between its users: /tmp is private to this user\n"
