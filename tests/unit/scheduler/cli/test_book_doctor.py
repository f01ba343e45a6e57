"""The findings of `roost doctor` in the machine's book, and its repairs. Folders of the test, real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit.fakes.client import StubClient, document
from roost.launchers.daemon.process import start_time
from roost.launchers.machine_book.folder_reader import Held
from roost.launchers.machine_book.leftovers import remove_dead
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import (
    NamedProcess,
    Promise,
    find_pid_namespace,
    name_file,
    write_promise,
)
from roost.launchers.machine_book.rules import BadRules, MachineRules, RulesReader
from roost.scheduler.cli import book_doctor, outside_use
from roost.scheduler.cli.book_doctor import BookDoctor
from roost.scheduler.cli.outside_use import Outside, describe_gpu_use, describe_memory_use, find_outside_use
from roost.scheduler.messages import Finding

UID = os.getuid()
HERE = NamedProcess(pid=os.getpid(), started_at=start_time(os.getpid()))
DEAD = NamedProcess(pid=1 << 22, started_at=1.0)
"""No process has this pid: it is above the greatest one of Linux."""


def build_promise(number: int, *, agent: NamedProcess = HERE, **values: object) -> Promise:
    fields = {"pid_namespace": find_pid_namespace(), "cpus": 1.0, "since": time.time(), **values}
    return Promise(name=name_file(UID, "agent", str(number)), agent=agent, **fields)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "book"
    made.mkdir(mode=0o1777)
    return made


def make_doctor(
    folder: Path | None,
    *others: Path,
    way: str = "installed",
    uid: int = UID,
    rules: RulesReader | None = None,
    why: str = "",
) -> BookDoctor:
    place = Place(folder, way, why)  # type: ignore[arg-type]
    return BookDoctor(
        find=lambda: place,
        list_folders=lambda: [each for each in (folder, *others) if each is not None],
        rules=rules or RulesReader(MachineRules, Path("/nonexistent")),
        uid=uid,
        find_use=lambda _: [],
        lock_deadline_s=0.05,
    )


def find(doctor: BookDoctor, *, fix: bool = False) -> list[Finding]:
    """Return the findings besides the first line, which says how the machine is divided."""
    return [each for each in doctor.find_problems(fix=fix) if "divide" not in each["what"]]


@pytest.mark.parametrize(
    ("way", "level", "text"),
    [
        ("installed", "ok", "which root has made"),
        ("shared", "ok", "ROOST_MACHINE_DIR leads out of it"),
        ("chosen", "ok", "others do not count"),
    ],
)
def test_the_way_is_named(way: str, level: str, text: str, folder: Path) -> None:
    (finding,) = make_doctor(folder, way=way).find_problems()
    assert (finding["level"], finding["do"]) == (level, "")
    assert text in finding["what"]
    assert str(folder) in finding["what"]


def test_a_machine_that_nobody_divides_is_a_warning() -> None:
    (finding,) = make_doctor(
        None, way="nobody", why="/tmp is private to this user or service"
    ).find_problems()
    assert finding["level"] == "warning"
    assert finding["what"].endswith("/tmp is private to this user or service")
    assert "machine install`" in finding["do"]


def test_a_book_in_order_has_no_findings(folder: Path) -> None:
    write_promise(folder, build_promise(1))
    assert find(make_doctor(folder)) == []


def test_own_dead_promises_are_removed_and_a_live_one_stays(folder: Path) -> None:
    alive, kernel_lives = build_promise(1), build_promise(2, agent=DEAD, processes=(HERE,))
    for promise in (alive, kernel_lives, build_promise(3, agent=DEAD), build_promise(4, agent=DEAD)):
        write_promise(folder, promise)
    before = sorted(os.listdir(folder))
    doctor = make_doctor(folder)
    (finding,) = find(doctor)
    assert finding["level"] == "warning"
    assert finding["what"] == (
        f"2 promises of the user with uid {UID} in {folder} are left by processes that have ended"
    )
    assert (finding["do"], finding["fix"]) == ("run `roost doctor --fix`", "they are removed")
    assert sorted(os.listdir(folder)) == before, "looking changes nothing"
    (fixed,) = find(doctor, fix=True)
    assert (fixed["level"], fixed["fix"]) == ("fixed", "2 files removed")
    assert sorted(os.listdir(folder)) == sorted([alive.name, kernel_lives.name])


def test_a_promise_that_is_written_again_while_it_is_removed_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = build_promise(1, agent=DEAD)
    write_promise(folder, dead)
    rename = Path.rename

    def write_first(path: Path, target: Path) -> Path:
        write_promise(folder, replace(dead, agent=HERE))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", write_first)
    assert not remove_dead(folder / dead.name, UID)
    assert os.listdir(folder) == [dead.name]
    assert find(make_doctor(folder)) == []


def test_a_live_promise_is_never_removed(folder: Path) -> None:
    for number, promise in enumerate(
        [
            build_promise(1),
            build_promise(2, agent=DEAD, processes=(HERE,)),
            build_promise(3, agent=DEAD, pid_namespace="pid:[1]"),
        ]
    ):
        write_promise(folder, promise)
        assert not remove_dead(folder / promise.name, UID)
        assert len(os.listdir(folder)) == number + 1


def test_promises_of_another_container_stay_and_are_a_warning(folder: Path) -> None:
    write_promise(folder, build_promise(1, agent=DEAD, pid_namespace="pid:[1]"))
    (finding,) = find(make_doctor(folder), fix=True)
    assert finding["level"] == "warning"
    assert "was made in another container, and does not count" in finding["what"]
    assert len(os.listdir(folder)) == 1


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder in the block, as another process would."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_a_lock_that_is_held_names_its_holder_and_stops_the_repair(folder: Path) -> None:
    write_promise(folder, build_promise(1, agent=DEAD))
    with held(folder):
        failed, lock, _ = find(make_doctor(folder), fix=True)
    assert (failed["level"], len(os.listdir(folder))) == ("error", 1)
    assert lock["level"] == "warning"
    assert f"the lock on {folder} is held for more than 0.05 s by process {os.getpid()} (" in lock["what"]
    assert f"of the user with uid {UID}" in lock["what"]


def test_unfinished_files_of_dead_writers_are_removed(folder: Path) -> None:
    name = name_file(UID, "agent", "0")
    old, young, live = (folder / f".{name}.{pid}.tmp" for pid in (DEAD.pid, DEAD.pid + 1, os.getpid()))
    for path in (old, young, live):
        path.write_text("{")
    for path in (old, live):
        os.utime(path, (1, 1))
    doctor = make_doctor(folder)
    (finding,) = find(doctor)
    assert finding["what"].endswith("is left by processes that have ended while they were written")
    find(doctor, fix=True)
    assert sorted(folder.iterdir()) == sorted([young, live])


def plant(folder: Path, uid: int, number: int) -> None:
    """Write a dead promise of another user, as that user would."""
    dead = replace(build_promise(number, agent=DEAD), name=name_file(uid, "agent", str(number)))
    write_promise(folder, dead)
    os.chown(folder / dead.name, uid, uid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
def test_only_root_removes_what_others_have_left(folder: Path) -> None:
    plant(folder, 4711, 1)
    (finding,) = find(make_doctor(folder, uid=4712), fix=True)
    assert finding["level"] == "ok"
    assert finding["what"].startswith("1 promise of the user with uid 4711")
    assert "fix" not in finding
    assert len(os.listdir(folder)) == 1
    (fixed,) = find(make_doctor(folder, uid=0), fix=True)
    assert fixed["level"] == "fixed"
    assert os.listdir(folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
def test_many_strangers_are_at_most_five_lines(folder: Path) -> None:
    for uid in range(4711, 4711 + 20):
        plant(folder, uid, uid)
    found = find(make_doctor(folder, uid=4720))
    assert len(found) == 5
    assert found[0]["what"].startswith("1 promise of the user with uid 4720"), (
        "what can be mended comes first"
    )
    assert found[-1]["what"] == "16 more groups of files in the machine's book do not count"


def test_foreign_files_are_named_with_their_owner(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    (folder / name_file(UID, "agent", "1")).symlink_to("/etc/passwd")
    (folder / name_file(UID, "agent", "2")).write_text("[" * 10_000)
    (finding,) = find(make_doctor(folder))
    assert finding["level"] == "warning"
    assert finding["what"].startswith(f"3 files of the user with uid {UID} in {folder} do not count: ")
    (finding,) = find(make_doctor(folder, way="shared"))
    assert finding["what"].startswith("2 files"), "a folder of the system is full of other files"


def test_promises_in_two_folders_are_named(folder: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    write_promise(older, build_promise(1))
    assert find(make_doctor(folder, older)) == []
    write_promise(folder, build_promise(2))
    write_promise(folder, build_promise(3))
    (finding,) = find(make_doctor(folder, older))
    assert finding["what"].endswith(f"2 in {folder}, 1 in {older}")
    assert finding["do"].startswith(f"nothing: new ones go to {folder}")


def test_a_clock_that_was_set_back_is_a_warning(folder: Path) -> None:
    write_promise(folder, build_promise(1, since=time.time() + 7290))
    write_promise(folder, build_promise(2, since=time.time() + 30))
    (finding,) = find(make_doctor(folder))
    assert finding["level"] == "warning"
    assert finding["what"].startswith(f"1 promise of uid {UID} has a time up to 2 h ahead")


def test_bad_rules_are_an_error(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "machine.toml"
    file.write_text("x")

    def fail() -> MachineRules:
        raise BadRules("/etc/roost/machine.toml: `cpus` must be a number")

    (finding,) = find(make_doctor(folder, rules=RulesReader(fail, file)))
    assert (finding["level"], finding["what"]) == (
        "error",
        "/etc/roost/machine.toml: `cpus` must be a number",
    )


# Programs outside roost


def test_programs_on_gpus_are_named_with_their_amounts() -> None:
    assert describe_gpu_use([], {1: 5}) == []
    (finding,) = describe_gpu_use([os.getpid()], {os.getpid(): 12 << 30, 1: 1 << 30})
    assert finding["what"].startswith("1 program outside roost uses GPUs, 12 GiB of their memory: process ")
    assert f"process {os.getpid()} (" in finding["what"]
    assert "it counts as used, not as promised" in finding["do"]
    (finding,) = describe_gpu_use([1, 2], {1: 0, 2: 0})
    assert "2 programs outside roost use GPUs, unknown how much" in finding["what"]


def test_memory_is_a_warning_only_if_promises_and_use_exceed_it() -> None:
    assert describe_memory_use(4 << 30, 3 << 30, 8 << 30) == []
    assert describe_memory_use(0, 9 << 30, 8 << 30) == []
    (finding,) = describe_memory_use(4 << 30, 5 << 30, 8 << 30)
    assert finding["what"] == (
        "4 GiB of memory are promised to kernels, and programs outside roost use about 5 GiB: there are 8 GiB"
    )


def test_processes_of_kernels_and_their_children_are_roosts() -> None:
    """A kernel leads a session. Its child may lead another one."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True, text=True) as kernel:
        assert kernel.stdout is not None
        child = int(kernel.stdout.readline())
        try:
            outside = Outside({kernel.pid})
            assert outside.is_roost(kernel.pid)
            assert outside.is_roost(child)
            assert outside.choose([kernel.pid, child, os.getpid(), DEAD.pid]) == [os.getpid()]
            assert Outside(set()).choose([kernel.pid, child]) == sorted([kernel.pid, child])
        finally:
            os.kill(child, signal.SIGKILL)
            kernel.kill()


def test_a_kernel_on_a_gpu_is_no_program_outside_roost(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {os.getpid(): 3 << 30, DEAD.pid: 5 << 30}
    reader = SimpleNamespace(memory_by_pid=used, close=lambda: None)
    monkeypatch.setattr(outside_use, "DeviceReader", lambda first_wait_s: reader)
    (finding,) = (each for each in find_outside_use([]) if "GPU" in each["what"])
    assert "1 program outside roost uses GPUs, 3 GiB of their memory" in finding["what"], (
        "the dead one is none"
    )
    kernel = Held(UID, Path("/"), build_promise(1, agent=DEAD, processes=(HERE,)))
    assert [each for each in find_outside_use([kernel]) if "GPU" in each["what"]] == []


def test_this_machine_can_be_measured() -> None:
    assert all(each["level"] == "warning" for each in find_outside_use([]))


# The command


def test_the_command_repairs_only_if_asked(
    client: StubClient, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_promise(folder, build_promise(1, agent=DEAD))
    doctor = make_doctor(folder)
    monkeypatch.setattr(book_doctor, "find_problems", doctor.find_problems)
    for options in ((), ("--dry-run",), ("--fix", "--dry-run")):
        findings = document(capsys, "doctor", *options)["findings"]
        (dead,) = (each for each in findings if "have ended" in each["what"])
        assert dead["do"] == ("would do: it is removed" if options else "run `roost doctor --fix`")
        assert len(os.listdir(folder)) == 1
    findings = document(capsys, "doctor", "--fix")["findings"]
    assert [each["level"] for each in findings if "have ended" in each["what"]] == ["fixed"]
    assert os.listdir(folder) == []


@pytest.mark.usefixtures("client")
def test_the_book_is_no_matter_of_clusters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    def find_problems(fix: bool) -> list[Finding]:
        asked.append(fix)
        return []

    monkeypatch.setattr(book_doctor, "find_problems", find_problems)
    document(capsys, "doctor", "--backend", "ray")
    assert asked == []
    document(capsys, "doctor")
    assert asked == [False]
