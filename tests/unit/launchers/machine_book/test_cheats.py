"""Promises that claim another user's name, or more than their user may hold. The files belong to other users."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from roost.launchers.daemon.process import start_time
from roost.launchers.machine_book.book import ABOVE_LIMIT, MachineBook
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import (
    NamedProcess,
    Promise,
    find_pid_namespace,
    name_file,
    write_promise,
)
from roost.launchers.machine_book.rules import Amounts, MachineRules, RulesReader

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
ADA, BOB = 4711, 4712
HERE = NamedProcess(pid=os.getpid(), started_at=start_time(os.getpid()))


def write(folder: Path, uid: int, name: str, *, since: float = 1.0, named: int | None = None) -> Path:
    """Write a promise of one GPU, as the user with this uid would. `named` is the uid in its name."""
    promise = Promise(
        name=name_file(uid if named is None else named, "agent", name),
        agent=HERE,
        pid_namespace=find_pid_namespace(),
        cpus=1,
        devices={name: 1.0},
        since=since,
    )
    write_promise(folder, promise)
    os.chown(folder / promise.name, uid, uid)
    return folder / promise.name


def open_book(folder: Path, users: Mapping[str, Amounts] | None = None) -> MachineBook:
    rules = MachineRules(users=users or {})
    return MachineBook(
        "own",
        cpus=8,
        memory_bytes=100,
        find=lambda: Place(folder, "installed"),
        list_folders=lambda: [folder],
        rules=RulesReader(lambda: rules, folder),
    )


@pytest.fixture(autouse=True)
def processes_of_all_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process of this test count as one of each user."""
    monkeypatch.setattr("roost.launchers.machine_book.promise._uid_of", lambda pid: None)


def test_a_promise_in_anothers_name_does_not_count(tmp_path: Path) -> None:
    good = write(tmp_path, ADA, "0")
    false = write(tmp_path, BOB, "1", named=ADA)
    counted, strangers = open_book(tmp_path).read_all()
    assert [(each.uid, each.path) for each in counted] == [(ADA, good)]
    assert [(each.uid, each.path) for each in strangers] == [(BOB, false)]
    assert strangers[0].reason == f"belongs to uid {BOB}, not to the user in its name"


def test_claims_above_a_limit_do_not_count(tmp_path: Path) -> None:
    oldest = write(tmp_path, ADA, "0", since=1)
    later = [write(tmp_path, ADA, str(number), since=number) for number in (2, 3)]
    other = write(tmp_path, BOB, "4")
    rules = MachineRules(users={str(ADA): Amounts(gpus=1)})
    counted, strangers = open_book(tmp_path).read_all(rules)
    assert {each.path for each in counted} == {oldest, other}
    assert {(each.path, each.reason) for each in strangers} == {(path, ABOVE_LIMIT) for path in later}
    view = open_book(tmp_path, {str(ADA): Amounts(gpus=1)}).look()
    assert dict(view.devices) == {"0": 1, "4": 1}
