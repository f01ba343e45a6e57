"""Contacts of a host through OpenSSH's client and a real sshd on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.machine.own_sshd import PYTHON, OwnSshd, own_sshd, why_not
from roost.scheduler.backends.ssh import open_ssh
from roost.scheduler.backends.ssh.contacts import Contacts, find_route_of
from roost.scheduler.backends.ssh.open_ssh import HostProblem, run_on_host
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "sshd is there")

GREET = "say({'is': ARGUMENTS['word'], 'argv': sys.argv})"


@pytest.fixture
def sshd(tmp_path: Path, runtime_dir: Path) -> Iterator[OwnSshd]:
    with own_sshd(tmp_path) as server:
        yield server


async def contact(server: OwnSshd, program: str = GREET, **options: Any) -> dict[str, Any]:
    usual = {"archive": lambda: b"", "python": PYTHON, "ssh": server.ssh, "deadline_s": allow_s(30)}
    return await run_on_host(server.host, program, {"word": 'it\'s "é" !'}, **(usual | options))


async def test_a_program_answers(sshd: OwnSshd) -> None:
    sshd.start()
    assert await contact(sshd) == {"is": 'it\'s "é" !', "argv": ["-c"]}


def run_tool(*command: str, **variables: str) -> None:
    environment = {**os.environ, **variables}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=allow_s(10))


@contextlib.contextmanager
def started(*command: str, makes: str) -> Iterator[None]:
    """Run a program until the end of the block, which begins when the program has made the file `makes`."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until_blocking(lambda: os.path.exists(makes), f"the program has made {makes}", 10, 0.01)
        yield
    finally:
        process.terminate()
        process.wait(allow_s(10))


async def problem_of(server: OwnSshd, kind: str, program: str = GREET, **options: Any) -> str:
    """Return the sentence of a contact that fails with a problem of this kind. Nothing of it may be left."""
    with pytest.raises(HostProblem) as caught:
        await contact(server, program, **options)
    print(caught.value)
    assert not list_children()
    assert "\n" not in str(caught.value)
    assert caught.value.kind == kind
    return str(caught.value)


def list_children() -> list[str]:
    """Return the commands of roost's ssh processes. An ended process that is not reaped counts too."""
    ours = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            is_dead_child = process.ppid() == os.getpid() and process.status() == psutil.STATUS_ZOMBIE
            if process.name() == "ssh" and (is_dead_child or os.environ["ROOST_RUNTIME_DIR"] in command):
                ours.append(command)
    return ours


async def test_the_archive_is_sent_when_the_program_wants_it(sshd: OwnSshd) -> None:
    sshd.start()
    content = os.urandom(1 << 20)
    program = "import hashlib; say({'digest': hashlib.sha256(fetch_archive()).hexdigest()})"
    answer = await contact(sshd, program, archive=lambda: content)
    assert answer == {"digest": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "tcsh", "csh", "fish", "zsh", "ksh"])
async def test_login_shells_read_the_line_alike(sshd: OwnSshd, tmp_path: Path, shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"there is no {shell} here")
    sshd.start(ForceCommand=f'exec env HOME={tmp_path} {path} -c "$SSH_ORIGINAL_COMMAND"')
    assert (await contact(sshd))["is"] == 'it\'s "é" !'


async def test_what_login_files_print_is_skipped(sshd: OwnSshd) -> None:
    noise = (
        'printf "ROOST- {} \\377\\nwelcome"; echo beware >&2; "$SHELL" -c "$SSH_ORIGINAL_COMMAND"; echo bye'
    )
    sshd.start(ForceCommand=noise)
    assert (await contact(sshd))["is"] == 'it\'s "é" !'


async def test_a_host_without_a_setting_runs_the_first_python_with_the_packages(
    sshd: OwnSshd, tmp_path: Path
) -> None:
    for name, script in {
        "python3.14": "exit 127",
        "python3.13": "exit 66",
        "python3.12": "exit 67",
        "python3.11": f'exec {PYTHON} "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    sshd.start(ForceCommand=f'PATH={tmp_path}:/usr/bin:/bin; eval "$SSH_ORIGINAL_COMMAND"')
    assert (await contact(sshd, python=""))["is"] == 'it\'s "é" !'


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("exit 66", "in its PATH, and python3 is older"),
        ("exit 67", "cannot run roost's agent (it lacks zmq or psutil): install ipykernel"),
    ],
)
async def test_a_host_without_a_good_python_is_explained(
    sshd: OwnSshd, tmp_path: Path, script: str, cause: str
) -> None:
    (tmp_path / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python3").chmod(0o755)
    sshd.start(ForceCommand=f'PATH={tmp_path}; eval "$SSH_ORIGINAL_COMMAND"')
    text = await problem_of(sshd, "python", python="")
    assert cause in text
    assert "set the option python" in text


async def test_a_python_of_the_settings_that_is_missing_is_explained(sshd: OwnSshd) -> None:
    sshd.start()
    text = await problem_of(sshd, "python", python="~/none/bin/python")
    assert text.startswith("~/none/bin/python on n1 is no program")


async def test_an_unknown_host_key_is_refused(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start()
    (tmp_path / "known_hosts").unlink()
    sshd.configure_client(StrictHostKeyChecking="no")
    text = await problem_of(sshd, "host_key")
    assert f"is not known here: run `ssh -F {tmp_path}/config n1` once" in text
    assert not (tmp_path / "known_hosts").exists()


async def test_a_changed_host_key_is_refused(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start()
    sshd.know("other_host_key")
    text = await problem_of(sshd, "host_key")
    assert "has changed" in text
    assert f"`ssh-keygen -f {tmp_path}/known_hosts -R '[127.0.0.1]:{sshd.port}'`" in text


async def test_a_revoked_host_key_is_refused(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start()
    known = tmp_path / "known_hosts"
    known.write_text(f"@revoked * {(tmp_path / 'host_key.pub').read_text()}" + known.read_text())
    text = await problem_of(sshd, "host_key")
    assert "revoked" in text


async def test_a_key_that_the_host_does_not_accept(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start()
    sshd.configure_client(IdentityFile=str(tmp_path / "other_user_key"))
    text = await problem_of(sshd, "authentication")
    assert "(publickey): run `ssh-add`" in text


async def test_a_password_is_never_asked_for_nor_tried(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start(PasswordAuthentication="yes")
    sshd.configure_client(IdentityFile=str(tmp_path / "other_user_key"))
    text = await problem_of(sshd, "authentication")
    assert "(publickey,password)" in text
    assert "Failed password" not in sshd.log


async def test_too_many_keys(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start(MaxAuthTries="1")
    run_tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{tmp_path}/third_key")
    sshd.configure_client(IdentityFile=f"{tmp_path}/other_user_key\n    IdentityFile {tmp_path}/third_key")
    text = await problem_of(sshd, "authentication")
    assert "IdentitiesOnly" in text


async def test_a_closed_port(sshd: OwnSshd) -> None:
    text = await problem_of(sshd, "refused")
    assert f"nobody listens at 127.0.0.1, port {sshd.port}" in text


async def test_a_name_that_is_no_host(sshd: OwnSshd) -> None:
    sshd.configure_client(HostName="n1.invalid")
    text = await problem_of(sshd, "unreachable")
    assert "there is no host n1.invalid" in text


async def test_too_many_logins_under_way(sshd: OwnSshd) -> None:
    sshd.start(MaxStartups="1")
    with socket.create_connection(("127.0.0.1", sshd.port)) as waiting:
        waiting.recv(100)  # its banner: this connection counts
        await problem_of(sshd, "refused")


async def test_a_line_of_the_configuration_that_ssh_does_not_know(sshd: OwnSshd) -> None:
    sshd.configure_client("Nonsense yes")
    text = await problem_of(sshd, "ssh")
    assert "line 1: Bad configuration option: nonsense: correct that line" in text


async def test_a_command_that_the_host_replaces(sshd: OwnSshd) -> None:
    sshd.start(ForceCommand="echo This service allows sftp connections only.; exit 1")
    assert "refuses commands" in await problem_of(sshd, "authentication")
    sshd.stop()
    sshd.start(ForceCommand="echo hello")
    text = await problem_of(sshd, "answer")
    assert "(hello)" in text
    sshd.stop()
    sshd.start(ForceCommand="/bin/false")
    assert "ended with code 1 and no word" in await problem_of(sshd, "authentication")


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("sys.stdout.write(MARK + ' {\"half\": '); sys.stdout.flush()", "in the middle of a line"),
        ("print(MARK, 'no json')", "cannot read (no json)"),
        ("print(MARK, '[' * 100000)", "cannot read"),
        ("pass", "without an answer: exit code 0"),
        ("raise ValueError('so')", "without an answer: ValueError: so"),
        ("say({'problem': 'the folder is\\nfull'})", "n1: the folder is full"),
        ("while True: sys.stdout.write('x' * 65536)", "more than 1 MiB"),
        ("while True: print('x' * 100)", "more than 1 MiB"),
        ("while True: say({'step': 'again'})", "more than 1 MiB"),
        ("fetch_archive(); fetch_archive()", "asked twice for the archive"),
        ("say({'problem': 'x' * 400 + ': do this'})", ": do this"),
        ("print(MARK, end=''); [sys.stdout.write('x' * 65536) for _ in range(16000)]", "without an end"),
    ],
)
async def test_answers_that_are_none(sshd: OwnSshd, program: str, cause: str) -> None:
    sshd.start()
    text = await problem_of(sshd, "answer", program)
    assert cause in text


async def test_a_flood_of_standard_error_is_dropped(sshd: OwnSshd) -> None:
    sshd.start()
    program = "[sys.stderr.write('x' * 65536) for _ in range(160)]; sys.exit('\\nthe end')"
    assert "without an answer: the end" in await problem_of(sshd, "answer", program)


async def test_a_host_that_says_nothing(sshd: OwnSshd) -> None:
    sshd.start()
    text = await problem_of(sshd, "slow", "import time; time.sleep(1000)", deadline_s=allow_s(2))
    assert "no answer within" in text


async def test_a_server_that_says_nothing(sshd: OwnSshd) -> None:
    with socket.create_server(("127.0.0.1", sshd.port)):
        await problem_of(sshd, "slow", deadline_s=0.5)
        sshd.configure_client(ConnectTimeout="1")
        await problem_of(sshd, "unreachable")


async def test_an_agent_that_the_program_leaves_does_not_hold_the_contact(sshd: OwnSshd) -> None:
    sshd.start()
    program = "import subprocess; say({'pid': subprocess.Popen(['sleep', '1000']).pid})"
    pid = (await contact(sshd, program))["pid"]
    assert not list_children()
    psutil.Process(pid).kill()


async def test_a_cancelled_contact_leaves_nothing(sshd: OwnSshd) -> None:
    sshd.start()
    begun = asyncio.Event()
    program = "say({'step': 'here'}); fetch_archive(); say({})"

    def report(step: str) -> None:
        if step == "here":
            begun.set()

    task = asyncio.ensure_future(
        contact(sshd, program, report=report, archive=lambda: time.sleep(0.1) or b"")
    )
    await asyncio.wait_for(begun.wait(), allow_s(10))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list_children()


async def test_a_contact_that_is_cancelled_at_any_time_leaves_nothing(sshd: OwnSshd) -> None:
    sshd.start()
    for n in range(12):
        task = asyncio.ensure_future(contact(sshd))
        await asyncio.sleep(0.02 * n)
        task.cancel()
        await asyncio.wait([task])
        assert not list_children()


@pytest.mark.parametrize(
    ("victim", "kind", "cause"),
    [
        ("ssh", "ssh", "was ended by signal 9"),
        ("sshd", "unreachable", "the connection to n1 was lost ("),
        ("python", "answer", "without an answer: "),
    ],
)
async def test_a_process_of_the_way_that_is_killed(sshd: OwnSshd, victim: str, kind: str, cause: str) -> None:
    sshd.start()
    program = "import os, time; say({'step': 'pids %d %d' % (os.getpid(), os.getppid())}); time.sleep(1000)"

    def report(step: str) -> None:
        if step.startswith("pids "):
            python = psutil.Process(int(step.split()[1]))
            (ssh,) = (each for each in psutil.Process().children() if each.name() == "ssh")
            server = next(each for each in python.parents() if each.name() in ("sshd", "sshd-session"))
            {"ssh": ssh, "sshd": server, "python": python}[victim].kill()
            if victim != "python":
                python.kill()

    text = await problem_of(sshd, kind, program, report=report)
    assert cause in text


async def test_the_services_own_agent_is_asked(
    sshd: OwnSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd.start()
    sshd.configure_client(IdentityFile="none", IdentityAgent="SSH_AUTH_SOCK", IdentitiesOnly="no")
    socket_path = str(tmp_path / "agent")
    with started("ssh-agent", "-D", "-a", socket_path, makes=socket_path):
        run_tool("ssh-add", "-q", f"{tmp_path}/user_key", SSH_AUTH_SOCK=socket_path)
        monkeypatch.setenv("SSH_AUTH_SOCK", socket_path)
        assert await contact(sshd)
        monkeypatch.delenv("SSH_AUTH_SOCK")
        await problem_of(sshd, "authentication")


async def test_a_persons_open_connection_is_used(
    sshd: OwnSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_ssh, "_CHECK_S", allow_s(20))
    sshd.start()
    steps: list[str] = []
    sshd.configure_client(ControlPath=f"{tmp_path}/master")
    with started(*sshd.ssh, "-N", "-M", sshd.host, makes=f"{tmp_path}/master"):
        # A login would fail now.
        sshd.configure_client(ControlPath=f"{tmp_path}/master", IdentityFile="none")
        assert await contact(sshd, report=steps.append)
        assert steps == ["master", "shell", "python"]
    await problem_of(sshd, "authentication")


async def test_an_open_connection_without_a_free_session(
    sshd: OwnSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_ssh, "_CHECK_S", allow_s(20))
    sshd.start(MaxSessions="1")
    sshd.configure_client(ControlPath=f"{tmp_path}/master")
    with started(*sshd.ssh, "-M", sshd.host, "sleep 1000", makes=f"{tmp_path}/master"):
        assert await contact(sshd)  # by a login of its own
        sshd.configure_client(ControlPath=f"{tmp_path}/master", IdentityFile="none")
        text = await problem_of(sshd, "unreachable")
    assert "the open connection has no free session" in text


async def test_a_master_that_hangs_is_left_alone(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start()
    sshd.configure_client(ControlPath=f"{tmp_path}/master")
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(f"{tmp_path}/master")
        hung.listen()
        assert await contact(sshd)
    # Its file is left without a process.
    assert await contact(sshd)


async def test_no_configuration_lets_roost_leave_a_master(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start()
    keep = f"ControlMaster auto\n    ControlPersist yes\n    ControlPath {tmp_path}/%n"
    sshd.configure_client(f"Host jump\n    {keep}", HostName="127.0.0.1")
    add_jump(sshd, f"{keep}\n    RemoteCommand none\n    LocalForward {sshd.port} 127.0.0.1:1")
    assert await contact(sshd)
    assert not list_children()
    assert not list(tmp_path.glob("[jn]*1"))
    assert not (tmp_path / "jump").exists()


async def test_the_way_to_a_host_names_its_jump_hosts(sshd: OwnSshd) -> None:
    server = f"127.0.0.1:{sshd.port}"
    assert await find_route_of("n1", sshd.ssh) == (server,)
    sshd.configure_client(ProxyJump="ada@login:2222,gate")
    assert await find_route_of("n1", sshd.ssh) == (server, "login:2222", "gate")


def add_jump(server: OwnSshd, lines: str = "", **options: str) -> None:
    """Let the host be reached through `jump`, which is the same sshd. `options` are those of the jump host."""
    server.configure_client(**options)
    text = (server.folder / "config").read_text().replace("Host n1", "Host jump")
    server.configure_client(text, ProxyJump="jump", **({"SetEnv": "A=b\n    " + lines} if lines else {}))


async def test_a_host_behind_a_jump_host(sshd: OwnSshd) -> None:
    sshd.start()
    add_jump(sshd)
    assert await contact(sshd)
    assert sshd.log.count("Accepted publickey") == 2


async def test_problems_of_a_jump_host_name_it(sshd: OwnSshd, tmp_path: Path) -> None:
    sshd.start(PasswordAuthentication="yes")
    add_jump(sshd, HostName="jump.invalid")
    text = await problem_of(sshd, "unreachable")
    assert "there is no host jump.invalid" in text
    add_jump(sshd, HostName="localhost", StrictHostKeyChecking="no")
    text = await problem_of(sshd, "host_key")
    assert f"the host key of [localhost]:{sshd.port} is not known" in text
    add_jump(sshd, IdentityFile=str(tmp_path / "other_user_key"))
    text = await problem_of(sshd, "authentication")
    assert "Failed password" not in sshd.log


async def test_a_jump_host_that_closes_the_connection(sshd: OwnSshd) -> None:
    def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        add_jump(sshd, Port=str(server.sockets[0].getsockname()[1]))
        text = await problem_of(sshd, "refused")
    assert "the sshd of its jump host 127.0.0.1 closed the connection" in text


async def test_a_command_on_the_way_that_fails(sshd: OwnSshd) -> None:
    sshd.configure_client(ProxyCommand="false")
    text = await problem_of(sshd, "refused")
    assert "check ProxyJump and ProxyCommand" in text


async def test_a_jump_host_that_reaches_nothing(sshd: OwnSshd) -> None:
    sshd.start()
    add_jump(sshd)
    text = (sshd.folder / "config").read_text()
    (sshd.folder / "config").write_text(f"Host n1\n    Port 1\n{text}")
    text = await problem_of(sshd, "refused")
    assert "jump host reports: Connection refused" in text
    sshd.stop()
    sshd.start(AllowTcpForwarding="no")
    text = await problem_of(sshd, "ssh")
    assert "its jump host forbids" in text


async def test_many_contacts_at_once_succeed(sshd: OwnSshd) -> None:
    sshd.start(MaxStartups="10:30:100")
    contacts = Contacts()
    asked = [
        contacts.run("n1", "say({})", {}, archive=bytes, python=PYTHON, ssh=sshd.ssh, deadline_s=allow_s(30))
        for _ in range(24)
    ]
    assert await asyncio.gather(*asked) == [{}] * 24
    assert not list_children()
    assert "drop connection" not in sshd.log


async def test_contacts_of_a_full_server_succeed_later(sshd: OwnSshd) -> None:
    sshd.start(MaxStartups="1")
    refused = asyncio.Event()

    async def run(*arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return await run_on_host(*arguments, **options)
        except HostProblem as problem:
            if problem.kind == "refused":
                refused.set()
            raise

    contacts = Contacts(run=run)
    with socket.create_connection(("127.0.0.1", sshd.port)) as waiting:
        waiting.recv(100)
        asked = asyncio.ensure_future(
            contacts.run("n1", "say({})", {}, archive=bytes, python=PYTHON, ssh=sshd.ssh)
        )
        await asyncio.wait_for(refused.wait(), allow_s(30))
    assert await asked == {}


async def test_an_ipv6_address(sshd: OwnSshd, tmp_path: Path) -> None:
    try:
        sshd.start(ListenAddress=f"[::1]:{sshd.port}")
    except AssertionError:
        pytest.skip("there is no IPv6 here")
    known = tmp_path / "known_hosts"
    known.write_text(known.read_text().replace("127.0.0.1", "::1"))
    sshd.configure_client(HostName="::1")
    assert await contact(sshd)
    known.unlink()
    assert f"the host key of [::1]:{sshd.port} is not known" in await problem_of(sshd, "host_key")


async def test_no_key_is_in_a_command(sshd: OwnSshd) -> None:
    sshd.start()
    program = "import subprocess; say({'ps': subprocess.check_output(['ps', '-ef', 'ww'], text=True)})"
    listed = (
        await run_on_host(sshd.host, program, {"key": "SeCrEt"}, archive=bytes, python=PYTHON, ssh=sshd.ssh)
    )["ps"]
    assert "find_spec" in listed
    assert "SeCrEt" not in listed
