"""The configuration of the client: what roost fixes, and what stays the person's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.scheduler.backends.ssh import client_config
from roost.scheduler.backends.ssh.client_config import check_file, prepare_command
from roost.scheduler.backends.ssh.problems import HostProblem
from roost.testing.deadlines import allow_s


@pytest.fixture(autouse=True)
def home(tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the home of the user, with a folder for ssh's files."""
    entry = SimpleNamespace(pw_dir=str(tmp_path))
    monkeypatch.setattr(client_config, "pwd", SimpleNamespace(getpwuid=lambda _: entry))
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def text_of(command: list[str]) -> str:
    return Path(command[command.index("-F") + 1]).read_text()


def test_the_files_of_the_person_and_of_the_machine_are_included() -> None:
    text = text_of(prepare_command(("ssh",)))
    assert text.index("ControlMaster no") < text.index('Include "~/.ssh/config"')
    assert text.index('Include "~/.ssh/config"') < text.index('Include "/etc/ssh/ssh_config"')
    assert text.index('Include "/etc/ssh/ssh_config"') < text.index("ConnectTimeout")


@pytest.mark.parametrize(
    ("options", "included", "kept"),
    [
        (["-F", "/a/b"], 'Include "/a/b"', []),
        (["-F/a/b", "-4"], 'Include "/a/b"', ["-4"]),
        (["-o", "-F", "-i", "key"], 'Include "~/.ssh/config"', ["-o", "-F", "-i", "key"]),
        (["-vF", "x"], 'Include "~/.ssh/config"', ["-vF", "x"]),
        (["-F", "none"], "", []),
    ],
)
def test_a_file_among_the_options_takes_the_place_of_the_usual_ones(
    options: list[str], included: str, kept: list[str]
) -> None:
    command = prepare_command(("ssh", *options))
    lines = [line for line in text_of(command).splitlines() if line.startswith("Include")]
    assert lines[:1] == ([included] if included else [])
    assert command[:2] == ["ssh", "-F"]
    assert command[3:] == kept


def test_a_person_is_not_asked() -> None:
    assert "BatchMode yes\nStrictHostKeyChecking yes" in text_of(prepare_command(("ssh",)))


def test_a_file_that_has_vanished_is_written_again() -> None:
    command = prepare_command(("ssh",))
    os.unlink(command[2])
    assert prepare_command(("ssh",)) == command
    assert text_of(command)


def test_a_configuration_that_others_may_write_is_refused(home: Path) -> None:
    config = home / ".ssh/config"
    config.write_text("")
    config.chmod(0o600)
    prepare_command(("ssh",))
    config.chmod(0o602)
    with pytest.raises(HostProblem, match=f"ssh does not trust {config}: run `chmod"):
        prepare_command(("ssh",))
    prepare_command(("ssh", "-F", "none"))


def test_a_file_among_the_options_must_exist(home: Path) -> None:
    """ssh leaves out a file that another one includes, and then fails to log in."""
    file = home / "lab_config"
    with pytest.raises(
        HostProblem, match=r"lab_config: No such file or directory: correct -F in c\.RoostSsh"
    ):
        check_file(("ssh", "-p", "22", "-F", str(file)))
    file.write_text("Host n1\n")
    for options in (["-F", str(file)], ["-F", "none"], []):
        check_file(("ssh", *options))


def test_no_option_of_a_person_makes_the_client_ask_or_leave_a_master(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(
        "BatchMode no\nControlMaster auto\nControlPersist yes\nStrictHostKeyChecking no\nRemoteCommand ls\n"
        "LogLevel QUIET\nConnectTimeout 77\nControlPath /a\nForwardAgent yes\n"
    )
    command = prepare_command(("ssh", "-F", str(own)))
    try:
        done = subprocess.run(
            [*command, "-G", "n1"], capture_output=True, text=True, check=True, timeout=allow_s(10)
        )
    except FileNotFoundError:
        pytest.skip("there is no ssh: install OpenSSH's client")
    options = done.stdout.splitlines()
    fixed = {
        "batchmode yes",
        "controlmaster false",
        "stricthostkeychecking true",
        "loglevel INFO",
        "forwardagent no",
    }
    assert fixed <= set(options)
    assert {"connecttimeout 77", "controlpath /a", "clearallforwardings yes"} <= set(options)
    assert not any(line.startswith("remotecommand ls") for line in options)
