"""`roost ssh check` with a real sshd on loopback."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from kit.machine.own_sshd import PYTHON, OwnSshd, own_sshd, why_not
from roost.scheduler.backends.ssh import contacts
from roost.scheduler.cli import main
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "sshd is there")


@pytest.fixture
def sshd(tmp_path: Path, runtime_dir: Path) -> Iterator[OwnSshd]:
    with own_sshd(tmp_path) as server:
        yield server


def check(server: OwnSshd, *words: str) -> int:
    options = [f"ssh={json.dumps(server.ssh)}", f"python={PYTHON}"]
    return main.main(["ssh", "check", *(f"--backend-option={option}" for option in options), *words])


def read_checks(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Return the checks of the one host, by their steps."""
    (host,) = json.loads(capsys.readouterr().out)["hosts"]
    return {check["step"]: check for check in host["checks"]}


def test_a_host_that_can_run_kernels(sshd: OwnSshd, capsys: pytest.CaptureFixture[str]) -> None:
    sshd.start(SetEnv=f"ROOST_RUNTIME_DIR={sshd.folder}/far")
    assert check(sshd, "--json", "n1") == 0
    checks = read_checks(capsys)
    assert list(checks)[:6] == ["settings", "login", "python", "archive", "imports", "amounts"]
    assert checks["archive"]["what"] == "roost's code is sent"
    assert checks["address"] == checks["address"] | {
        "level": "ok",
        "what": "its ports are reached at 127.0.0.1",
    }
    assert all(checks[step]["seconds"] > 0 for step in ("settings", "login", "python", "imports", "address"))
    assert check(sshd, "n1") == 0
    out = capsys.readouterr().out
    print(out)
    assert "roost's code is there" in out
    assert out.endswith("n1 can run kernels.\n")


def test_a_host_that_cannot(
    sshd: OwnSshd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contacts, "_PAUSES_S", ())
    assert check(sshd, "--json", "n1") == 1
    checks = read_checks(capsys)
    assert list(checks) == ["settings", "login"]
    assert "nobody listens" in checks["login"]["what"]
    assert check(sshd, "n1", "n1") == 1
    assert capsys.readouterr().out.endswith("0 of 1 hosts can run kernels. Not: n1.\n")


def test_a_host_without_an_address_that_is_reached(sshd: OwnSshd, capsys: pytest.CaptureFixture[str]) -> None:
    sshd.start(SetEnv=f"ROOST_RUNTIME_DIR={sshd.folder}/far")
    hosts = 'hosts={"n1": {"address": "192.0.2.1"}}'
    assert check(sshd, "--json", f"--backend-option={hosts}") == 1
    checks = read_checks(capsys)
    assert checks["address"]["what"].startswith("nothing can listen on 192.0.2.1 there")
    assert checks["amounts"]["level"] == "ok"


def test_a_prologue_that_fails(sshd: OwnSshd, capsys: pytest.CaptureFixture[str]) -> None:
    sshd.start()
    assert check(sshd, "--json", '--backend-option=prologue=["module load nothing"]', "n1") == 1
    checks = read_checks(capsys)
    assert "the prologue failed" in checks["prologue"]["what"]


def test_a_person_is_asked_about_an_unknown_host_key(sshd: OwnSshd) -> None:
    sshd.start(SetEnv=f"ROOST_RUNTIME_DIR={sshd.folder}/far")
    known = sshd.folder / "known_hosts"
    known.unlink()
    options = " ".join(
        f"--backend-option {quote(option)}" for option in (f"ssh={json.dumps(sshd.ssh)}", f"python={PYTHON}")
    )
    command = f"{PYTHON} -m roost ssh check {options} n1"
    # `script` gives the command a terminal.
    terminal = ["script", "--quiet", "--return", "--command", command, "/dev/null"]
    with subprocess.Popen(terminal, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        out = b""
        while not out.endswith(b"? "):
            chunk = os.read(process.stdout.fileno(), 4096)
            assert chunk, out
            out += chunk
        process.stdin.write(b"yes\n")
        process.stdin.flush()
        out += process.stdout.read()
        assert process.wait(allow_s(60)) == 0, out
    assert b"the host key of [127.0.0.1]:" in out
    assert b"n1 can run kernels." in out
    assert known.read_text().startswith(f"[127.0.0.1]:{sshd.port} ")
