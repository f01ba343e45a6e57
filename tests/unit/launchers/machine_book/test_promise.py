"""What keeps a promise alive, and the form of an agent's file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.daemon.process import current_start_time, start_time
from roost.launchers.machine_book import promise as module
from roost.launchers.machine_book.promise import (
    AgentFile,
    Found,
    Keeper,
    Promise,
    encode_promise,
    list_living,
    name_file,
    read_file,
    read_folder,
    write_file,
)

ID = "0a" * 32
HERE = Keeper(pid=os.getpid(), started_at=start_time(os.getpid()))
DEAD = Keeper(pid=1 << 22, started_at=1.0)
"""No process has this pid: it is above the greatest one of Linux."""


@pytest.mark.parametrize(
    ("keeper", "lives"),
    [
        (HERE, True),
        (Keeper(pid=os.getpid(), started_at=HERE.started_at + 1), False),
        (DEAD, False),
        (Keeper(pid=1 << 40, started_at=1.0), False),
        (Keeper(pid=-1, started_at=1.0), False),
        (Keeper(), False),
    ],
)
def test_a_process_is_known_by_its_pid_and_its_start(keeper: Keeper, lives: bool) -> None:
    assert keeper.lives() is lives


@pytest.mark.parametrize(("earlier_boots", "lives"), [(0, True), (1, False)])
def test_a_hidden_process_counts_since_the_last_boot(
    earlier_boots: int, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hidepid` shows no process of another user, and /tmp may have files from before a boot."""

    def refuse(pid: int, signum: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    started_at = current_start_time() + earlier_boots * 1e9
    assert Keeper(pid=DEAD.pid, started_at=started_at).lives() is lives


@pytest.mark.parametrize(
    "group",
    [
        f"docker/{ID}",
        f"system.slice/docker-{ID}.scope",
        f"machine.slice/libpod-{ID}.scope",
        f"user.slice/user-7.slice/user@7.service/user.slice/docker-{ID}.scope",
        f"memory/docker/{ID}",
    ],
)
def test_a_container_lives_while_it_has_a_control_group(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONTROL_GROUPS", tmp_path)
    keeper = Keeper(container=ID)
    assert not keeper.lives()
    (tmp_path / group).mkdir(parents=True)
    assert keeper.lives()
    assert not Keeper(container="0b" * 32).lives()
    (tmp_path / group).rmdir()
    assert not keeper.lives()


@pytest.mark.parametrize("name", ["*", "../x", "docker", "0a"])
def test_the_id_of_a_container_is_no_pattern(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONTROL_GROUPS", tmp_path)
    (tmp_path / "docker" / f"{ID}-docker").mkdir(parents=True)
    assert not Keeper(container=name).lives()


def test_a_promise_without_its_agent_holds_while_something_keeps_it() -> None:
    kept, lost = Promise(keepers=(DEAD, HERE), cpus=1), Promise(keepers=(DEAD,), cpus=2)
    promises = {"a": kept, "b": lost}
    assert AgentFile(agent=HERE, promises=promises).living() == [kept, lost]
    assert AgentFile(agent=DEAD, promises=promises).living() == [kept]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    held = Promise(
        keepers=(HERE, Keeper(container=ID)), cpus=0.5, memory_bytes=7, devices={"0": 0.5}, since=9.0
    )
    file = AgentFile(agent=HERE, promises={"a": held})
    path = tmp_path / name_file(1001, "agent")
    write_file(path, HERE, {"a": encode_promise(held)})
    assert read_file(path) == Found(os.getuid(), file)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


BAD: dict[str, Any] = {
    "a share of 7": {"promises": {"a": {"devices": {"0": 7.0}}}},
    "a negative share": {"promises": {"a": {"devices": {"0": -1.0}}}},
    "negative CPUs": {"promises": {"a": {"cpus": -4}}},
    "text for CPUs": {"promises": {"a": {"cpus": "all"}}},
    "a list of promises": {"promises": [{}]},
    "no promises": {"promises": None},
    "no agent": {"agent": None},
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_with_impossible_promises_counts_nothing(what: str, tmp_path: Path) -> None:
    path = tmp_path / name_file(1001, "agent")
    good = {"agent": {"pid": HERE.pid, "started_at": HERE.started_at}, "promises": {"a": {"cpus": 1}}}
    path.write_text(json.dumps({**good, "added": "later"}))
    assert read_file(path).problem == ""
    path.write_text(json.dumps({**good, **BAD[what]}))
    found = read_file(path)
    assert found.file is None
    assert found.problem.startswith(f"{path} has no promises that can be read: ")


def test_a_file_is_read_again_after_each_change(tmp_path: Path) -> None:
    path = tmp_path / name_file(1001, "agent")
    for cpus in range(50):
        write_file(path, HERE, {"a": encode_promise(Promise(cpus=cpus))})
        (held,) = list_living(read_folder(tmp_path).values())
        assert (held.uid, held.promise.cpus) == (os.getuid(), cpus)
    path.unlink()
    assert read_folder(tmp_path) == {}


def test_an_agent_that_names_a_kernel_after_it_was_read_and_ends_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name_file(1001, "agent")
    write_file(path, DEAD, {"a": encode_promise(Promise())})
    is_running = module.is_running

    def name_kernel(pid: int, started_at: float) -> bool:
        if pid == DEAD.pid:
            write_file(path, DEAD, {"a": encode_promise(Promise(keepers=(HERE,)))})
        return is_running(pid, started_at)

    monkeypatch.setattr(module, "is_running", name_kernel)
    assert len(list_living(read_folder(tmp_path).values())) == 1
