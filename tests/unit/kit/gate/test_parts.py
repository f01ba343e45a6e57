"""Which parts a change touches, and whether it has edited a test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kit.gate.known import is_edited, read_entries
from kit.gate.parts import find_base, find_own, git, list_changed

TEST = "def test_it():\n    assert True\n"


@pytest.mark.parametrize(
    ("paths", "parts"),
    [
        (["placement/__init__.py", "docs/ray.md"], []),
        (["scheduler/backends/yarn/cluster.py"], ["yarn"]),
        (["tests/clusters/ssh/test_ssh_contact.py"], ["ssh"]),
        (["tests/kit/clusters/kubelets/cluster.py"], ["kubernetes"]),
        (["launchers/zygote/loop.py"], ["forks"]),
        (["provisioners/provisioner.py"], ["servers"]),
        (["provisioners/server_extension/connection.py"], ["servers", "browser"]),
        (
            ["scheduler/backends/agent_per_node/backend.py", "scheduler/backends/dask/join.py"],
            ["dask", "ray"],
        ),
    ],
)
def test_the_parts_that_a_change_touches(paths: list[str], parts: list[str]) -> None:
    assert find_own(paths) == parts


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new git checkout, which is the working folder, with one old commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BASE", raising=False)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "ada")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "ada@example.org")
    git("init", "-q")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text(TEST)
    commit("2030-01-01T00:00:00Z", monkeypatch)
    return tmp_path


def commit(at: str, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("GIT_COMMITTER_DATE", at)
    git("add", "-A")
    git("commit", "-q", "-m", "x")
    return git("rev-parse", "HEAD")


def test_a_change_begins_four_hours_before_its_head(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = git("rev-parse", "HEAD")
    for hour in (5, 7):
        (checkout / f"{hour}").touch()
        commit(f"2030-01-01T0{hour}:00:00Z", monkeypatch)
    assert find_base() == before
    assert list_changed(before) == ["5", "7"]
    monkeypatch.setenv("BASE", "HEAD^")
    assert list_changed(find_base()) == ["7"]


def test_a_moved_test_is_not_edited(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = git("rev-parse", "HEAD")
    subprocess.run(["git", "mv", "tests/test_a.py", "tests/test_b.py"], check=True)
    commit("2030-01-01T01:00:00Z", monkeypatch)
    assert not is_edited("tests/test_b.py::test_it[1]", base)
    (checkout / "tests/test_b.py").write_text(TEST.replace("True", "1"))
    (checkout / "tests/test_c.py").write_text(TEST.replace("it", "new"))
    commit("2030-01-01T02:00:00Z", monkeypatch)
    assert is_edited("tests/test_b.py::test_it[1]", base)
    assert is_edited("tests/test_c.py::test_new", base)


def test_an_inherited_test_is_edited_with_its_suite(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, test = checkout / "tests/testing/suite.py", "tests/test_it.py::TestIt::test_it[a::b]"
    suite.parent.mkdir()
    suite.write_text(f"class Suite:\n    {TEST.replace('    ', '        ')}")
    (checkout / "tests/test_it.py").write_text("class TestIt(Suite):\n    pass\n")
    base = commit("2030-01-01T01:00:00Z", monkeypatch)
    assert not is_edited(test, base)
    suite.write_text(suite.read_text().replace("True", "1"))
    commit("2030-01-01T02:00:00Z", monkeypatch)
    assert is_edited(test, base)


def test_an_entry_counts_since_git_first_saw_its_test(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = '[[flaky]]\ntest = "tests/test_a.py::test_it"\nsince = 2029-01-01\ncause = "machine"\n'
    (checkout / "tests/flaky.toml").write_text(line)
    commit("2030-01-02T00:00:00Z", monkeypatch)
    (checkout / "tests/flaky.toml").write_text(line.replace("machine", "product"))
    commit("2030-01-05T00:00:00Z", monkeypatch)
    (entry,) = read_entries()
    assert (entry.cause, entry.since.day) == ("product", 2)
