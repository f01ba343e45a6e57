"""`roost machine install`, and what other commands say about the machine's book, in folders of the test."""

from __future__ import annotations

import argparse
import fcntl
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit.fakes.client import StubClient, document, run
from roost.launchers.daemon.process import start_time
from roost.launchers.machine_book.places import Place, Way
from roost.launchers.machine_book.promise import Held, Keeper, Promise, encode_promise, name_file, write_file
from roost.launchers.machine_book.rules import BadRules, MachineRules
from roost.scheduler.cli import machine
from roost.scheduler.cli.machine import Installation, run_installation
from roost.scheduler.errors import NotAllowed, RoostError


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """Return an installation below the folder of the test, for this user, on a machine with systemd."""
    owner = (os.getuid(), os.getgid())
    return Installation(
        folder=tmp_path / "run" / "roost",
        tmpfiles=tmp_path / "etc" / "tmpfiles.d" / "roost.conf",
        owner=owner,
        systemd=tmp_path,
    )


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch, installation: Installation) -> None:
    """Let the command believe that root has called it."""
    installation.folder.parent.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def install(installation: Installation, capsys: pytest.CaptureFixture[str], *, dry_run: bool = False) -> str:
    assert run_installation(argparse.Namespace(dry_run=dry_run, json=False), installation) == 0
    return capsys.readouterr().out


def state_of(installation: Installation) -> tuple[str, str]:
    return installation.tmpfiles.read_text(), f"{installation.folder.lstat().st_mode:o}"


@pytest.mark.usefixtures("as_root")
def test_the_installation_may_be_repeated(
    installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    out = install(installation, capsys)
    assert f"Made the folder {installation.folder}, mode 1777" in out
    assert "/etc/roost/machine.toml" in out
    made = state_of(installation)
    assert made == (f"d {installation.folder} 1777 root root -\n", "41777")
    assert installation.tmpfiles.stat().st_mode & 0o777 == 0o644
    (installation.folder / "promise").write_text("kept")
    out = install(installation, capsys)
    assert "nothing is to do" in out
    assert "Made" not in out
    assert state_of(installation) == made
    assert (installation.folder / "promise").read_text() == "kept"


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_no_umask_changes_the_result(
    umask: int, installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(umask)
    try:
        install(installation, capsys)
    finally:
        os.umask(before)
    assert state_of(installation)[1] == "41777"
    assert installation.tmpfiles.stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o1755, 0o2777])
def test_a_wrong_mode_is_mended(
    mode: int, installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    installation.folder.mkdir()
    installation.folder.chmod(mode)
    out = install(installation, capsys)
    assert f"it had mode {mode:o}" in out
    assert state_of(installation)[1] == "41777"


@pytest.mark.usefixtures("as_root")
def test_an_old_line_is_replaced(installation: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    installation.tmpfiles.parent.mkdir(parents=True)
    installation.tmpfiles.write_text("d /run/roost 0755 root root -\n")
    assert "Wrote" in install(installation, capsys)
    assert state_of(installation)[0] == installation.line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.usefixtures("as_root")
def test_a_wrong_owner_is_mended(installation: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    installation.folder.mkdir()
    os.chown(installation.folder, 12345, 12345)
    assert "owner 12345:12345" in install(installation, capsys)
    assert installation.folder.stat().st_uid == 0


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_something_else_than_a_folder_is_refused_before_anything_is_written(
    kind: str, installation: Installation, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    {
        "file": lambda: installation.folder.write_text("x"),
        "link": lambda: installation.folder.symlink_to(target),
        "pipe": lambda: os.mkfifo(installation.folder),
    }[kind]()
    with pytest.raises(RoostError, match=r"is (a link|no folder): remove it, then run this command again\.$"):
        run_installation(argparse.Namespace(dry_run=False, json=False), installation)
    assert not installation.tmpfiles.exists()
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def test_a_dry_run_shows_all_that_would_be_written_and_changes_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    out = install(installation, capsys, dry_run=True)
    assert f"Would write {installation.tmpfiles} with the line `{installation.line.strip()}`." in out
    assert f"Would make the folder {installation.folder}, mode 1777, owner root:root." in out
    assert not installation.folder.exists()
    assert not installation.tmpfiles.exists()


def test_without_root_one_sentence_says_what_to_type(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotAllowed, match=r"^Only root can do this: run `sudo /.* machine install`\.$"):
        run_installation(argparse.Namespace(dry_run=False, json=False), installation)
    assert not installation.folder.exists()


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(("program", "is_named"), [("/bin/systemd-tmpfiles", False), (None, True)])
def test_without_systemd_the_command_must_be_run_again(
    program: str | None,
    is_named: bool,
    installation: Installation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without = replace(installation, systemd=tmp_path / "none", find_program=lambda name: program)
    assert ("run this command again after each boot" in install(without, capsys)) is is_named


@pytest.mark.usefixtures("as_root")
def test_a_folder_that_cannot_be_written_is_one_sentence(installation: Installation) -> None:
    installation.tmpfiles.parent.parent.write_text("no folder")
    with pytest.raises(RoostError, match=r"^Cannot write .*\.$"):
        run_installation(argparse.Namespace(dry_run=False, json=False), installation)


# The machine's book

HERE = Keeper(pid=os.getpid(), started_at=start_time(os.getpid()))
DEAD = Keeper(pid=1 << 22, started_at=1.0)
"""No process has this pid: it is above the greatest one of Linux."""


class Book:
    """The folder of the book, which the commands read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, *promises: Promise, owner: str = "agent", agent: Keeper = HERE) -> None:
        """Write the file of an agent with these promises."""
        texts = {str(number): encode_promise(promise) for number, promise in enumerate(promises)}
        write_file(self.folder / name_file(os.getuid(), owner), agent, texts)


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Book:
    monkeypatch.setattr(machine, "find_place", lambda: Place(tmp_path, "chosen"))
    monkeypatch.setattr(machine, "read_rules", MachineRules)
    return Book(tmp_path)


def test_the_nodes_of_this_machine_say_what_other_users_hold(
    client: StubClient, book: Book, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    book.write(Promise(cpus=2.5, memory_bytes=3 << 30), Promise(devices={"GPU-5ad": 1.0, "GPU-7": 0.25}))
    assert "ther users" not in run(capsys, "nodes")[1], "all are this user's"
    list_living = machine.list_living
    monkeypatch.setattr(
        machine,
        "list_living",
        lambda files: [Held(987_654_321, each.promise) for each in list_living(files)],
    )
    last = run(capsys, "nodes")[1].splitlines()[-1]
    assert last == "Other users hold 2.5 CPUs, 3 GiB of memory, 1.25 GPUs."
    assert "ther users" not in run(capsys, "nodes", "--backend", "ray")[1]


def test_the_book_is_read_without_its_lock(book: Book) -> None:
    book.write(Promise(cpus=2.5))
    before = {path.name: path.stat().st_mtime_ns for path in book.folder.iterdir()}
    descriptor = os.open(book.folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert machine.describe_others() == ""
    finally:
        os.close(descriptor)
    assert {path.name: path.stat().st_mtime_ns for path in book.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("way", "why", "level", "text"),
    [
        ("installed", "", "ok", "which root has made"),
        ("shared", "", "ok", "a folder of the system"),
        ("shared", "/run/roost is no folder of root's with mode 1777", "warning", "with mode 1777"),
        ("chosen", "", "ok", "others do not count"),
        ("nobody", "/tmp is private to this user or service", "warning", "nobody divides this machine"),
    ],
)
def test_the_doctor_says_what_divides_this_machine(
    way: Way,
    why: str,
    level: str,
    text: str,
    book: Book,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place(None if way == "nobody" else book.folder, way, why)
    monkeypatch.setattr(machine, "find_place", lambda: place)
    (finding,) = machine.find_problems()
    assert finding["level"] == level
    assert text in finding["what"]
    assert finding["what"].endswith(why)
    assert ("machine install`" in finding["do"]) == bool(why)


def test_the_doctor_names_a_mistake_in_the_rules(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> MachineRules:
        raise BadRules("/etc/roost/machine.toml: `cpus` must be a number")

    monkeypatch.setattr(machine, "read_rules", fail)
    _, finding = machine.find_problems()
    assert (finding["level"], finding["what"]) == (
        "error",
        "/etc/roost/machine.toml: `cpus` must be a number",
    )


def test_the_doctor_names_one_of_the_files_that_cannot_be_read(book: Book) -> None:
    book.write(Promise(cpus=1))
    book.write(Promise(cpus=1), owner="dead", agent=DEAD)
    assert len(machine.find_problems()) == 1, "a dead promise harms nobody"
    for number in range(2):
        (book.folder / name_file(os.getuid(), str(number))).symlink_to("/etc/passwd")
    _, finding = machine.find_problems()
    assert finding["level"] == "warning"
    assert finding["what"].startswith(f"2 files in the machine's book cannot be read: {book.folder}/roost-")
    assert finding["do"] == f"ask the user with uid {os.getuid()}"


def test_the_doctor_names_programs_outside_roost_that_use_gpus(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = SimpleNamespace(memory_by_pid={os.getpid(): 3 << 30, DEAD.pid: 5 << 30}, close=lambda: None)
    monkeypatch.setattr(machine, "DeviceReader", lambda first_wait_s: reader)
    _, finding = machine.find_problems()
    assert finding["what"].startswith(f"1 program outside roost uses GPUs: process {os.getpid()} (")
    session = os.getsid(0)
    book.write(Promise(keepers=(Keeper(pid=session, started_at=start_time(session)),)))
    assert len(machine.find_problems()) == 1, "a kernel and its processes are roost's"
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        reader.memory_by_pid = {child.pid: 3 << 30}
        found = machine.find_problems()
        child.kill()
    assert len(found) == 1, "also those with a session of their own"


@pytest.mark.usefixtures("client")
def test_the_book_is_no_matter_of_clusters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(machine, "find_problems", lambda: asked.append(True) or [])
    document(capsys, "doctor", "--backend", "ray")
    assert asked == []
    document(capsys, "doctor")
    assert asked == [True]
