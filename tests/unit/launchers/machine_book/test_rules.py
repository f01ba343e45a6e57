"""The rules in `/etc/roost/machine.toml`: their meaning, and one sentence for each mistake."""

from __future__ import annotations

import grp
import os
import pwd
import re
from pathlib import Path

import pytest

from roost.launchers.machine_book import rules as module
from roost.launchers.machine_book.rules import (
    Amounts,
    BadRules,
    MachineRules,
    RulesReader,
    read_rules,
)

PAGE = Path(__file__).resolve().parents[4] / "docs" / "several_users.md"
UID = os.getuid()
GIB = 1 << 30
GOOD = """
cpus = 30
memory = "64GiB"
gpus = ["GPU-a", "GPU-b", "GPU-c"]
gpu_model = "H100"
show_names = true

[reserve]
cpus = 2
memory = "8GiB"

[users."*"]
gpus = 1

[users.ada]
cpus = 8
gpus = 0.5

[users.4711]
memory = 4096

[groups.students]
gpus = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "machine.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    return path


@pytest.fixture(autouse=True)
def users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine know the users ada (1001, of the group students) and bob (4711)."""
    known = {"ada": 1001, "bob": 4711}
    groups = {"students": 300, "users": 100}

    def by_name(name: str) -> pwd.struct_passwd:
        uid = known[name]
        return pwd.struct_passwd((name, "x", uid, 100, "", "/", "/bin/sh"))

    def by_uid(uid: int) -> pwd.struct_passwd:
        return by_name(next((name for name, each in known.items() if each == uid), ""))

    def group(name: str, gid: int) -> grp.struct_group:
        return grp.struct_group((name, "x", gid, []))

    names = {gid: name for name, gid in groups.items()}
    monkeypatch.setattr(module, "_look_up", module._look_up.__wrapped__)
    monkeypatch.setattr(module.pwd, "getpwuid", by_uid)
    monkeypatch.setattr(module, "getgrgid", lambda gid: group(names[gid], gid))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 300] if name == "ada" else [gid])


def test_a_good_file(file: Path) -> None:
    rules = read_rules(file, root=UID)
    assert rules.totals == Amounts(cpus=30, memory_bytes=64 * GIB, gpus=3)
    assert rules.reserve == Amounts(cpus=2, memory_bytes=8 * GIB)
    assert rules.gpu_ids == ("GPU-a", "GPU-b", "GPU-c")
    assert (rules.gpu_model, rules.shows_names) == ("H100", True)
    assert rules.find_room(Amounts(cpus=99, memory_bytes=1)) == Amounts(cpus=28, memory_bytes=56 * GIB)


def test_the_example_in_the_documentation_is_good(file: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file.write_text(example)
    rules = read_rules(file, root=UID)
    assert rules.totals == Amounts(cpus=32, memory_bytes=128 * GIB, gpus=4)
    assert rules.reserve == Amounts(cpus=2, memory_bytes=8 * GIB)
    assert rules.limit_of(5000) == Amounts(gpus=1, memory_bytes=32 * GIB)
    assert rules.limit_of(1001) == Amounts(gpus=2)
    assert rules.groups_of(1001) == {"students": Amounts(cpus=16, gpus=2)}
    assert rules.shows_names


def test_without_a_file_nothing_is_limited(tmp_path: Path) -> None:
    rules = read_rules(tmp_path / "none", root=UID)
    assert rules == MachineRules()
    assert rules.limit_of(1001) == Amounts()
    assert rules.find_room(Amounts(cpus=4, memory_bytes=9)) == Amounts(cpus=4, memory_bytes=9)


@pytest.mark.parametrize(
    ("uid", "table", "limit"),
    [
        (1001, "ada", Amounts(cpus=8, gpus=0.5)),
        (4711, "4711", Amounts(memory_bytes=4096)),
        (5000, "*", Amounts(gpus=1)),
    ],
)
def test_a_limit_is_found_by_name_by_uid_and_for_all(
    uid: int, table: str, limit: Amounts, file: Path
) -> None:
    rules = read_rules(file, root=UID)
    assert rules.find_table(uid) == table
    assert rules.limit_of(uid) == limit


@pytest.mark.parametrize(("name", "uids"), [("students", {1001}), ("100", {1001, 4711}), ("999", set())])
def test_a_limit_of_a_group_is_found_by_name_and_gid(name: str, uids: set[int], file: Path) -> None:
    file.write_text(f"[groups.{name}]\ncpus = 1\n")
    rules = read_rules(file, root=UID)
    found = {uid for uid in (1001, 4711, 5000) if rules.groups_of(uid) == {name: Amounts(cpus=1)}}
    assert found == uids


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cpus = ", "it is not TOML: "),
        ("cpu = 3", "there is no setting `cpu`; known are cpus, gpu_model, "),
        ("[users.ada]\ndisk = 3", "there is no setting `users.ada.disk`; known are cpus, gpus, memory"),
        ("[reserve]\ngpus = 1", "there is no setting `reserve.gpus`; known are cpus, memory"),
        ("cpus = -1", "`cpus` must be a number, 0 or more; it is -1"),
        ("cpus = nan", "`cpus` must be a number, 0 or more; it is nan"),
        (f"cpus = 1{400 * '0'}", "`cpus` is more than any machine has"),
        (f"[users.ada]\ngpus = 1{5000 * '0'}", "it is not TOML"),
        ("cpus = inf", "`cpus` must be a number, 0 or more; it is inf"),
        ("cpus = true", "`cpus` must be a number, 0 or more; it is True"),
        ('[users.ada]\ncpus = "4"', "`users.ada.cpus` must be a number, 0 or more; it is '4'"),
        ('memory = "64 apples"', "`memory`: '64 apples' is not an amount of memory: "),
        ("gpus = -1", "`gpus` must be a number, or a list of different ids "),
        ("gpus = true", "`gpus` must be a number, or a list of different ids "),
        ('gpus = ["a", "a"]', "`gpus` must be a number, or a list of different ids "),
        ('gpus = [" "]', "`gpus` must be a number, or a list of different ids "),
        ("gpus = 1000000", "`gpus` must be a number, or a list of different ids "),
        ("gpu_model = 1", "`gpu_model` must be text; it is 1"),
        ('show_names = "yes"', "`show_names` must be true or false; it is 'yes'"),
        ("users = 3", "`users` must be a table"),
        ("[users]\nada = 3", "`users.ada` must be a table"),
        ("reserve = []", "`reserve` must be a table"),
    ],
)
def test_each_mistake_is_one_sentence(text: str, sentence: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(BadRules) as problem:
        read_rules(file, root=UID)
    assert str(problem.value).startswith(f"{file}: {sentence}")
    assert "\n" not in str(problem.value)
    assert not str(problem.value).endswith(".")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_change_is_refused(mode: int, file: Path) -> None:
    file.chmod(mode)
    with pytest.raises(BadRules, match=r"can be changed by others than root: run `chown root:root .*; chmod"):
        read_rules(file, root=UID)


def test_a_file_of_another_user_is_refused(file: Path) -> None:
    with pytest.raises(BadRules, match="can be changed by others than root"):
        read_rules(file, root=UID + 1)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "large", "latin1"])
def test_something_else_than_a_text_file_is_refused(kind: str, tmp_path: Path, file: Path) -> None:
    path = tmp_path / kind
    {
        "link": lambda: path.symlink_to(file),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "large": lambda: path.write_bytes(b"#" * ((1 << 20) + 1)),
        "latin1": lambda: path.write_bytes(b"# \xe9"),
    }[kind]()
    with pytest.raises(BadRules, match=f"^{path} "):
        read_rules(path, root=UID)


def test_the_file_is_read_again_after_a_change(file: Path) -> None:
    reads: list[Path] = []

    def read() -> MachineRules:
        reads.append(file)
        return read_rules(file, root=UID)

    reader = RulesReader(read, file)
    assert reader.current().totals.cpus == reader.current().totals.cpus == 30
    assert len(reads) == 1
    new = file.with_suffix(".new")
    new.write_text("cpus = 3")
    new.replace(file)
    assert reader.current().totals.cpus == 3
    file.write_text("cpus = ")
    for _ in range(2):
        with pytest.raises(BadRules):
            reader.current()
    file.unlink()
    assert reader.current() == MachineRules()
