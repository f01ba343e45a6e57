"""The program of a host: its prologues run in a login shell, and what they change is read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from roost.scheduler.backends.ssh import far_side
from roost.scheduler.backends.ssh.far_side import find_changes, run_prologue, write_program
from roost.testing.deadlines import allow_s, until_blocking


@pytest.fixture
def before(tmp_path: Path) -> dict[str, str]:
    """Return an environment with an empty home, so that no login file of a user runs."""
    return {"HOME": str(tmp_path), "PATH": os.defpath, "KEPT": "1", "GONE": "1"}


def change(prologue: str, before: Mapping[str, str]) -> dict[str, str]:
    """Return what the lines change, without what this machine's /etc/profile changes."""
    login, _ = run_prologue("true", before)
    after, problem = run_prologue(prologue, before)
    assert problem == ""
    return find_changes(login, after)


def test_only_exported_changes_count(before: dict[str, str]) -> None:
    lines = "export A='1\n2=3' B=\nC=3; KEPT=1; unset GONE; echo noise; PATH=/x:$PATH; cd /"
    found = change(lines, before)
    assert found.pop("PATH").startswith("/x:/")
    assert found == {"A": "1\n2=3", "B": "", "GONE": ""}
    assert run_prologue("", before) == (before, "")


def test_text_of_any_bytes_comes_back_as_it_is(before: dict[str, str]) -> None:
    found = change(r"""export A=$(printf '\377') B='"$x`!\' C=é""", before)
    assert {name: os.fsencode(value) for name, value in found.items()} == {
        "A": b"\xff",
        "B": b'"$x`!\\',
        "C": "é".encode(),
    }


def test_login_files_run_before_it(before: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".profile").write_text("echo A=noise\nmodule() { export LOADED=$2; }\n")
    assert change("module load cuda", before) == {"LOADED": "cuda"}


def test_a_login_shell_in_the_locale_c_adds_nothing_of_its_own(before: dict[str, str]) -> None:
    after, _ = run_prologue("true", before)
    assert "LC_CTYPE" not in find_changes(before, after)


def test_the_connection_and_roosts_own_variables_are_no_changes(before: dict[str, str]) -> None:
    lines = "export SSH_AUTH_SOCK=/x ROOST_RUNTIME_DIR=/y A=1"
    assert change(lines, before) == {"A": "1"}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("false; export A=1", "the prologue failed with code 1: correct its lines"),
        ("echo why >&2; exit 7", "the prologue failed with code 7 (why): correct its lines"),
        ("echo out; exit 7", "the prologue failed with code 7 (out): correct its lines"),
        ("exit 0", "the prologue failed with code 0: correct its lines"),
        ("if", "syntax error"),
        ("f() { echo no such module >&2; eval 'false'; }; f", "code 1 (no such module): correct its lines"),
        ("no-such-command", "no-such-command: command not found): correct its lines"),
    ],
)
def test_a_failure_is_one_clause(before: dict[str, str], lines: str, problem: str) -> None:
    found, said = run_prologue(lines, before)
    assert found == {}
    assert problem in said
    assert "\n" not in said


def test_a_prologue_that_does_not_end_is_ended(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_side, "PROLOGUE_S", 0.5)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    _, said = run_prologue("sleep 1000; true", before)
    assert said == "the prologue did not end within 0.5 s: shorten it"
    group = started[0].pid
    until_blocking(
        lambda: not any(is_alive_in(group, process) for process in psutil.process_iter()),
        "the group ends",
        10,
        0.01,
    )


def is_alive_in(group: int, process: psutil.Process) -> bool:
    """True if a process of this group runs. Killed ones disappear when their parent has reaped them."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_process_that_it_leaves_behind_does_not_delay_it(before: dict[str, str], tmp_path: Path) -> None:
    began = time.monotonic()
    assert change(f"sleep 1000 & echo $! > {tmp_path}/pid; export A=1", before) == {"A": "1"}
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert time.monotonic() - began < far_side.PROLOGUE_S, "it has not waited for the process"


def test_a_prologue_that_prints_much_or_sets_much_is_bounded(before: dict[str, str]) -> None:
    assert change("head -c 5000000 /dev/zero; export A=1", before) == {"A": "1"}
    _, said = run_prologue("export A=$(head -c 60000 /dev/zero | tr '\\0' a); export B=$A", before)
    assert said == "the variables after the prologue have more than 100 KiB: set fewer"


def test_the_lines_are_in_no_command(before: dict[str, str], tmp_path: Path) -> None:
    lines = f"tr '\\0' ' ' < /proc/$$/cmdline > {tmp_path}/seen; env > {tmp_path}/env; export SECRETLY=1"
    assert change(lines, before) == {"SECRETLY": "1"}
    assert "eval" in (seen := (tmp_path / "seen").read_text())
    assert "SECRETLY" not in seen
    assert "ROOST_LINES" not in (tmp_path / "env").read_text()


def test_a_python_that_the_lines_break_is_not_used_for_the_answer(before: dict[str, str]) -> None:
    found = change("export PYTHONHOME=/no/such PYTHONPATH=/no/such", before)
    assert found == {"PYTHONHOME": "/no/such", "PYTHONPATH": "/no/such"}


RUN = """
import json, sys
ARGUMENTS = json.loads(sys.argv[1])
def say(value): print(json.dumps(value))
def fetch_archive():
    if "is_full" in ARGUMENTS: raise OSError(28, "No space left on device")
    raise SystemExit("nobody needs the archive for this")
"""


def ask(before: Mapping[str, str], **arguments: Any) -> str:
    """Run the program as a host does, with these arguments, and return what it says."""
    given = json.dumps({"digest": "", "prologue": "", **arguments})
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN + write_program(), given],
        env=dict(before), capture_output=True, text=True, timeout=allow_s(30),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_program_answers_with_the_variables_of_a_prologue(before: dict[str, str]) -> None:
    found = ask(before, kernel_prologue="export B=$A", prologue="export A=1")
    assert json.loads(found)["variables"]["B"] == "1"
    assert ask(before, kernel_prologue="false") == (
        '{"failed": "the prologue failed with code 1: correct its lines"}'
    )
    assert ask(before, kernel_prologue="true", prologue="false").startswith('{"problem": ')


def test_a_disk_that_takes_no_files_is_named(before: dict[str, str], tmp_path: Path) -> None:
    """The system names no file if a write fails for lack of room."""
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    found = ask({**before, "ROOST_RUNTIME_DIR": str(folder)}, question=None, is_full=True)
    problem = json.loads(found)["problem"]
    assert problem == f"roost's files cannot be written on the host: No space left on device ({folder})"


def test_an_upgrade_in_place_does_not_change_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_program()
    monkeypatch.setattr("inspect.getsource", lambda part: "half a line of another vers")
    assert write_program() == before
