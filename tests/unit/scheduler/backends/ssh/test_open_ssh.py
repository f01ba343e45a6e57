"""Contacts through small programs in the place of OpenSSH's client, for what a real client cannot be made to do."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from roost.scheduler.backends.ssh import open_ssh
from roost.scheduler.backends.ssh.open_ssh import HostProblem, read_options, run_on_host
from roost.testing.deadlines import allow_s, until

MakeClient = Callable[..., tuple[str, ...]]

RUN = 'exec sh -c "$last"'


@pytest.fixture
def client(tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """Give a function that makes a client. It runs the lines `check` for a question to a master, else `body`."""
    monkeypatch.setattr(open_ssh, "_CHECK_S", allow_s(20))

    def make(body: str, *, check: str = "exit 255") -> tuple[str, ...]:
        path = tmp_path / "ssh"
        start = f'#!/bin/sh\nfor last; do :; done\nprintf "%s\\n" "$@" >> {tmp_path}/words\n'
        path.write_text(f'{start}case "$*" in *" -O check "*) {check};; esac\n{body}\n')
        path.chmod(0o755)
        return (str(path), "-p", "1", "-F", "none")

    return make


async def contact(ssh: tuple[str, ...], program: str = "say({'is': 1})", **options: Any) -> dict[str, Any]:
    usual = {"archive": bytes, "python": sys.executable, "ssh": ssh, "deadline_s": allow_s(20)}
    arguments = options.pop("arguments", {})
    return await run_on_host("n1", program, arguments, **(usual | options))


async def problem_of(ssh: tuple[str, ...], program: str = "say({})", **options: Any) -> HostProblem:
    with pytest.raises(HostProblem) as caught:
        await contact(ssh, program, **options)
    await until_none_is_left()
    return caught.value


_PR_SET_CHILD_SUBREAPER = 36
_BEFORE: set[psutil.Process] = set()
"""Processes of other tests."""


@pytest.fixture(autouse=True)
def others_processes() -> None:
    """Note the processes of other tests.

    An agent of another test has made this process a subreaper. So what ssh leaves behind would become its child.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    _BEFORE.clear()
    _BEFORE.update(psutil.Process().children(recursive=True))


def find_new() -> set[psutil.Process]:
    """Return the new children of this process, with theirs. The clusters of other tests may start processes, too."""
    new = set(psutil.Process().children()) - _BEFORE
    for child in list(new):
        with contextlib.suppress(psutil.NoSuchProcess):
            new.update(child.children(recursive=True))
    return new


async def until_none_is_left() -> None:
    """Wait until this test has no process, not even a zombie. A killed process may need a moment to be reaped."""
    await until(lambda: not find_new(), lambda: f"no process is left: {find_new()}", 5, 0.02)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_clients_command_and_environment(
    client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "SSH_ASKPASS"):
        monkeypatch.setenv(name, "old")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    program = "import os; say({'environment': dict(os.environ), 'is_leader': os.getsid(0) == os.getppid()})"
    answer = await contact(client(RUN), program)
    assert answer["environment"]["SSH_AUTH_SOCK"] == "/agent"
    assert answer["environment"]["SSH_ASKPASS_REQUIRE"] == "never"
    assert not {"DISPLAY", "SSH_ASKPASS"} & set(answer["environment"])
    assert answer["is_leader"]  # a session of its own has no terminal
    checked, run = (tmp_path / "words").read_text().split("-F\n")[1:]
    config, *words = checked.splitlines()
    assert words == ["-p", "1", "-O", "check", "--", "n1"]
    assert Path(config).stat().st_mode & 0o777 == 0o600
    words = run.splitlines()[1:-1]
    assert words == ["-p", "1", "-o", "ControlPath=none", "-o", "BatchMode=yes", "-T", "--", "n1"]


async def test_an_open_master_is_used(client: MakeClient, tmp_path: Path) -> None:
    await contact(client(RUN, check="exit 0"))
    assert "ControlPath=none" not in (tmp_path / "words").read_text()


async def test_a_question_to_a_master_has_a_deadline(
    client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_ssh, "_CHECK_S", 0.5)
    await contact(client(RUN, check="trap '' TERM; sleep 1000"))
    assert "ControlPath=none" in (tmp_path / "words").read_text()
    await until_none_is_left()


async def test_a_client_that_is_missing(tmp_path: Path, client: MakeClient) -> None:
    assert "install OpenSSH's client" in str(await problem_of((f"{tmp_path}/none",)))
    ssh = client(RUN)
    os.chmod(ssh[0], 0o600)
    problem = await problem_of(ssh)
    assert (problem.kind, "Permission denied" in str(problem)) == ("ssh", True)


async def test_what_the_client_prints_is_explained(client: MakeClient) -> None:
    problem = await problem_of(client("echo 'ada@n1: Permission denied (publickey).' >&2; exit 255"))
    assert problem.kind == "authentication"


async def test_a_client_that_does_not_end_is_killed_with_its_programs(client: MakeClient) -> None:
    problem = await problem_of(client("trap '' TERM HUP; sleep 1000 & sleep 1000"), deadline_s=0.5)
    assert problem.kind == "slow"
    assert "ssh could not log in to n1 within 0.5 s" in str(problem)
    assert "n1 true` in a terminal, which must end by itself" in str(problem)


async def test_a_client_that_goes_on_after_the_answer_is_killed(client: MakeClient) -> None:
    assert await contact(client('sh -c "$last"; sleep 1000')) == {"is": 1}
    await until_none_is_left()


async def test_a_program_that_holds_the_pipes_holds_no_contact(client: MakeClient, tmp_path: Path) -> None:
    before = count_descriptors()
    ssh = client(
        f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 1000' & "
        f"while [ ! -s {tmp_path}/pid ]; do sleep 0.02; done; echo lost >&2; exit 255"
    )
    try:
        assert "lost" in str(await problem_of(ssh))
        assert count_descriptors() <= before + 1  # the selector's own
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_a_client_that_reads_nothing_gets_large_arguments(client: MakeClient) -> None:
    problem = await problem_of(client("exit 255"), arguments={"text": "x" * 10_000_000})
    assert problem.kind == "ssh"
    problem = await problem_of(client("sleep 1000"), arguments={"text": "x" * 10_000_000}, deadline_s=0.5)
    assert problem.kind == "slow"


async def test_an_answer_in_small_pieces(client: MakeClient) -> None:
    program = """
import os
text = "noise ROOST-" + MARK[:-1] + MARK + ' {"step": "half"}\\n' + MARK + ' {"is": "whole"}\\n' + MARK + " {}\\n"
for char in text:
    os.write(1, char.encode())
"""
    steps: list[str] = []
    assert await contact(client(RUN), program, report=steps.append) == {"is": "whole"}
    assert steps == ["shell", "python", "half"]


async def test_many_contacts_leave_no_descriptor(client: MakeClient) -> None:
    await problem_of(client("exit 255"))
    before = count_descriptors()
    for _ in range(10):
        await problem_of(client("exit 255"))
        await contact(client(RUN))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(contact(client("exec sleep 1000")), 0.1)
    await until(lambda: count_descriptors() <= before, "no more descriptors are open than before", 5)


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a b", "a\nb"])
async def test_names_that_are_no_host(client: MakeClient, tmp_path: Path, host: str) -> None:
    with pytest.raises(HostProblem, match="is no name of a host"):
        await run_on_host(host, "", {}, archive=bytes, ssh=client(RUN))
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize("python", ["a'b", 'a"b', "a\\b", "a`b`", "a!b", "a\nb"])
async def test_pythons_that_cannot_stand_in_the_line(client: MakeClient, tmp_path: Path, python: str) -> None:
    problem = await problem_of(client(RUN), python=python)
    assert problem.kind == "python"
    assert not (tmp_path / "words").exists()


async def test_a_python_may_be_named_by_the_hosts_variables(
    client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "a home"))
    (tmp_path / "a home").mkdir()
    (tmp_path / "a home/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"')
    (tmp_path / "a home/python").chmod(0o755)
    for python in ("~/python", "$HOME/python"):
        assert await contact(client(RUN), python=python)


async def test_an_error_of_the_caller_reaches_the_caller(client: MakeClient) -> None:
    def fail(*_: object) -> bytes:
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        await contact(client(RUN), report=fail)
    with pytest.raises(ValueError, match="of the caller"):
        await contact(client(RUN), "fetch_archive()", archive=fail)
    await until_none_is_left()


async def test_options_of_the_client(client: MakeClient) -> None:
    ssh = client(
        "printf 'hostname n1.example.org\\nport 22\\nidentityfile a\\nidentityfile b\\nproxyjump ada@j:1,k\\n'"
    )
    options = await read_options("n1", ssh=ssh, deadline_s=allow_s(20))
    assert options == {
        "hostname": "n1.example.org",
        "port": "22",
        "identityfile": "a",
        "proxyjump": "ada@j:1,k",
    }
    assert await read_options("n1", ssh=client("sleep 1000"), deadline_s=0.2) == {}
    assert await read_options("n1", ssh=client("echo hostname n1; exit 255")) == {}
    assert await read_options("n1", ssh=("/none/ssh",)) == {}
