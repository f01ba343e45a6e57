"""`roost ssh check` without a host: the choice of hosts, the output, and the questions to a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.fakes.client import document, run
from roost.scheduler.backends.ssh.examination import Check, HostReport
from roost.scheduler.backends.ssh.host import Host
from roost.scheduler.backends.ssh.open_ssh import HostProblem, run_on_host
from roost.scheduler.backends.ssh.problems import Kind
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.scheduler.cli import ssh_check
from roost.scheduler.errors import ConfigError


class Examinations:
    """Examinations with given results. `kinds` has the problems of the next ones; `None` for a good host."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[Kind | None]] = {}
        self.asked: list[tuple[str, bool]] = []

    async def examine(
        self, host: Host, settings: RoostSshBackend, contact: Any, *, may_ask: bool = False, **options: Any
    ) -> HostReport:
        self.asked.append((host.name, may_ask))
        assert not may_ask or contact is run_on_host
        kinds = self.kinds.get(host.name, [])
        kind = kinds.pop(0) if kinds else None
        settled = Check(step="settings", level="ok", what="ada@n1, port 22", seconds=0.01)
        if kind is None:
            login = Check(step="login", level="ok", what="done", seconds=0.25)
            home = Check(step="home", level="note", what="the home is on afs", do="renew the tickets")
            return HostReport(host=host.name, checks=(settled, login, home))
        problem = HostProblem(f"ssh cannot log in to {host.name}: why\x1b[2J", kind=kind)
        login = Check(step="login", level="error", what=str(problem), seconds=1.5)
        return HostReport(host=host.name, checks=(settled, login), problem=problem)


@pytest.fixture
def examinations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examinations:
    found = Examinations()
    monkeypatch.setattr(ssh_check, "examine_host", found.examine)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path))
    return found


def test_good_hosts(examinations: Examinations, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ssh", "check", "n1", "n2", "n1")
    assert code == 0
    assert examinations.asked == [("n1", False), ("n2", False)]
    assert "n1    settings  0.01 s  ok    ada@n1, port 22\n" in out
    assert "n2    home              note  the home is on afs; renew the tickets\n" in out
    assert out.endswith("All 2 hosts can run kernels.\n")


def test_a_bad_host(examinations: Examinations, capsys: pytest.CaptureFixture[str]) -> None:
    examinations.kinds["n2"] = ["unreachable"]
    code, out, _ = run(capsys, "ssh", "check", "n1", "n2")
    assert code == 1
    assert "\x1b[2J" not in out
    assert out.endswith("1 of 2 hosts can run kernels. Not: n2.\n")


def test_a_document(examinations: Examinations, capsys: pytest.CaptureFixture[str]) -> None:
    examinations.kinds["n1"] = ["unreachable"]
    (host,) = document(capsys, "ssh", "check", "--json", "n1", code=1)["hosts"]
    assert (host["host"], host["can_run_kernels"]) == ("n1", False)
    assert host["checks"][0] == {
        "step": "settings",
        "level": "ok",
        "what": "ada@n1, port 22",
        "do": "",
        "seconds": 0.01,
    }


def test_the_hosts_of_the_settings(
    examinations: Examinations, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("n1 rack=a\nn2\n")
    code, _, _ = run(capsys, "ssh", "check", "--backend-option", f"hosts_file={tmp_path}/hosts")
    assert code == 0
    assert [name for name, _ in examinations.asked] == ["n1", "n2"]
    code, _, err = run(capsys, "ssh", "check")
    assert code == 2
    assert "no SSH host is named" in err
    code, _, err = run(capsys, "ssh", "check", "a;b")
    assert code == 2
    assert "cannot be the name of a host" in err


def test_a_named_host_has_the_address_of_the_settings() -> None:
    settings = RoostSshBackend(hosts={"n1": {"address": "10.0.0.1"}})
    chosen = ssh_check.choose_hosts(["n2", "n1"], settings)
    assert [(host.name, host.address) for host in chosen] == [("n2", ""), ("n1", "10.0.0.1")]
    with pytest.raises(ConfigError):
        ssh_check.choose_hosts([], RoostSshBackend())


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())


@pytest.mark.usefixtures("at_terminal")
@pytest.mark.parametrize(
    ("kinds", "asked", "code"),
    [
        (["unreachable"], [False], 1),
        (["host_key", None, None], [False, True, False], 0),
        (["host_key", "host_key"], [False, True], 1),
        (["authentication", None, "authentication"], [False, True, False], 1),
        (["authentication", "authentication"], [False, True], 1),
    ],
)
def test_a_person_is_asked_once(
    examinations: Examinations,
    capsys: pytest.CaptureFixture[str],
    kinds: list[Kind | None],
    asked: list[bool],
    code: int,
) -> None:
    examinations.kinds["n1"] = list(kinds)
    found, out, _ = run(capsys, "ssh", "check", "n1")
    assert found == code
    assert [may_ask for _, may_ask in examinations.asked] == asked
    assert ("only with an answer of yours: ssh cannot log in" in out) == (kinds[1:2] == [None] and code == 1)
    examinations.kinds["n1"] = list(kinds)
    examinations.asked.clear()
    document(capsys, "ssh", "check", "--json", "n1", code=1)
    assert len(examinations.asked) == 1
