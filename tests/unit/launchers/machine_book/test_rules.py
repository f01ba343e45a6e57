"""The rules in `/etc/roost/machine.toml`: their meaning, and one sentence for each mistake."""

from __future__ import annotations

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

[users."*"]
gpus = 1

[users.ada]
cpus = 8
gpus = 0.5

[users.4711]
memory = 4096
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "machine.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    return path


@pytest.fixture(autouse=True)
def users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine know the users ada (1001) and bob (4711)."""
    names = {1001: "ada", 4711: "bob"}

    def find(uid: int) -> pwd.struct_passwd:
        return pwd.struct_passwd((names[uid], "x", uid, 100, "", "/", "/bin/sh"))

    monkeypatch.setattr(module, "name_user", module.name_user.__wrapped__)
    monkeypatch.setattr(module.pwd, "getpwuid", find)


def test_a_good_file(file: Path) -> None:
    rules = read_rules(file, root=UID)
    assert rules.gpu_ids == ("GPU-a", "GPU-b", "GPU-c")
    assert rules.gpu_model == "H100"
    totals = rules.find_totals(Amounts(cpus=99, memory=1))
    assert (totals.cpus, totals.memory_bytes, totals.gpus) == (30, 64 * GIB, 3)


def test_the_example_in_the_documentation_is_good(file: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file.write_text(example)
    rules = read_rules(file, root=UID)
    assert dict(rules.find_totals(Amounts())) == {"cpus": 30, "memory": 120 * GIB, "gpus": 4}
    assert dict(rules.limit_of(5000)) == {"cpus": None, "memory": 32 * GIB, "gpus": 1}
    assert rules.limit_of(1001) == Amounts(gpus=2)


def test_without_a_file_nothing_is_limited(tmp_path: Path) -> None:
    rules = read_rules(tmp_path / "none", root=UID)
    assert rules == MachineRules()
    assert rules.limit_of(1001) == Amounts()
    assert not rules.is_given
    assert rules.find_totals(Amounts(cpus=4, memory=9)) == Amounts(cpus=4, memory=9)


@pytest.mark.parametrize(
    ("uid", "limit"),
    [(1001, Amounts(cpus=8, gpus=0.5)), (4711, Amounts(memory=4096)), (5000, Amounts(gpus=1))],
)
def test_a_limit_is_found_by_name_by_uid_and_for_all(uid: int, limit: Amounts, file: Path) -> None:
    assert read_rules(file, root=UID).limit_of(uid) == limit


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cpus = ", " is not TOML: "),
        (f"cpus = {'9' * 5000}", " is not TOML: "),
        ("cpu = 3", " has no field 'cpu'; it has cpus, memory, gpus, "),
        ("[groups.students]\ncpus = 3", " has no field 'groups'; it has cpus, memory, gpus, "),
        ("[users.ada]\ndisk = 3", ": users.ada has no field 'disk'; it has cpus, memory, gpus"),
        ('cpus = "many"', ": cpus must be a number, not str"),
        ("cpus = true", ": cpus must be a number, not bool"),
        ("cpus = -1", ": no amount can be negative"),
        ("cpus = inf", ": cpus must be a finite number, not inf"),
        ("[users.ada]\ngpus = -0.5", ": users.ada: no amount can be negative"),
        ('memory = "much"', ": 'much' is not an amount of memory: write 8GiB"),
        ("[users.ada]\nmemory = -1", ": users.ada: '-1.0' is not an amount of memory: write 8GiB"),
        ("gpus = 1025", ": gpus must be a number from 0 to 1024"),
        ('gpus = "all"', ": gpus must be a whole number, not str"),
        ('gpus = ["a", "a"]', ": gpus names one id twice"),
        ("gpu_model = 1", ": gpu_model must be text, not int"),
        ("users = 3", ": users must be an object, not int"),
        ("[users]\nada = 3", ": users.ada must be an object, not int"),
    ],
)
def test_each_mistake_is_one_sentence(text: str, sentence: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(BadRules) as problem:
        read_rules(file, root=UID)
    assert str(problem.value).startswith(f"{file}{sentence}")
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


def test_a_change_of_the_file_counts_at_once(file: Path) -> None:
    assert read_rules(file, root=UID).cpus == 30
    file.write_text("cpus = 3")
    assert read_rules(file, root=UID).cpus == 3
    file.write_text("cpus = ")
    for _ in range(2):
        with pytest.raises(BadRules):
            read_rules(file, root=UID)
