"""How a gateway starts relays: for whom, what sudo's words mean, and when it writes a rule."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from roost.provisioners.gateway import relays
from roost.provisioners.gateway.relays import check_person, explain, list_trusted, write_rule
from roost.provisioners.gateway.settings import RoostGateway
from roost.scheduler.errors import ConfigError


@pytest.mark.parametrize("person", ["root", "daemon", "no-such-person", "#0", "#1000", "0"])
def test_kernels_run_as_people_only(person: str) -> None:
    with pytest.raises(ConfigError, match="account"):
        check_person(person)


@pytest.mark.parametrize(
    ("said", "clause"),
    [
        ("sudo: a password is required\n", "`sudo` has no rule for this: `roost gateway sudoers` prints it"),
        ("roost-relay: The uid 7 has no account.\n", "The uid 7 has no account"),
        ("Sorry, user gateway is not allowed to execute '…' as eve on vm.\n", "`sudo` does not allow it"),
        ("", "the relay has ended without a word"),
        ("\x1b[31mred\n", r"\x1b[31mred"),
        ("x" * 1_000, "x" * 300),
    ],
)
def test_what_sudo_says_becomes_a_clause(said: str, clause: str) -> None:
    assert explain(said).startswith(clause)
    assert len(explain(said)) <= 300


def test_a_rule_is_written_only_if_root_alone_can_change_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    with pytest.raises(ConfigError, match="There is no group"):
        write_rule("gateway", "no-such-group", ["local"])
    open_to_all = tmp_path / "python"
    open_to_all.touch()
    open_to_all.chmod(0o666)
    monkeypatch.setattr(relays, "list_trusted", lambda: iter([Path("/"), open_to_all]))
    with pytest.raises(ConfigError, match=f"{open_to_all} can be changed by others"):
        write_rule("gateway", group, ["local"])
    monkeypatch.setattr(relays, "list_trusted", lambda: iter([Path("/")]))
    line = write_rule("gateway", group, ["local", "ssh"])
    assert line.startswith(f"gateway ALL=(%{group}) NOPASSWD: /")
    assert line.endswith(" -I -m roost.scheduler.client.relay ssh")
    assert line.count(" -I -m roost.scheduler.client.relay ") == 2


def test_the_relays_python_and_all_folders_above_count() -> None:
    trusted = set(list_trusted())
    assert {Path("/"), Path(relays.relay.__file__)} <= trusted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"impersonate": ["local"], "users": "trust"}, "believes each name"),
        ({"impersonate": ["ray"]}, "do not run as the user"),
        ({"impersonate": ["nothing"]}, "nothing"),
    ],
)
def test_impersonation_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RoostGateway(**settings).check_impersonation()
