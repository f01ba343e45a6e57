"""The settings of a gateway: what is wrong is one sentence, and nobody listens where it is not safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roost.provisioners.gateway.settings import (
    RoostGateway,
    build_settings,
    find_problems,
    read_config,
)
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import is_loopback


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    return tmp_path / "roost_gateway_config.py"


def test_there_are_few_settings() -> None:
    assert len(RoostGateway.class_own_traits(config=True)) <= 15


def test_the_file_is_found_and_read(file: Path) -> None:
    file.write_text("c.RoostGateway.admins = ['root']\nc.ServerApp.port = 1\n")
    config = read_config()
    assert (build_settings(config).admins, config.ServerApp.port) == (["root"], 1)
    file.unlink()
    assert build_settings(read_config()).admins == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c.RoostGateway.user = 'file'", "did you mean users"),
        ("c.RoostGateway.users = 'ldap'", "give one of file, header, hub, trust"),
        ("c.RoostGateway.max_kernels = -1", "max_kernels"),
        ("c.RoostGateway.allowed_values = {'A': 'b'}", "allowed_values"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(1)", "SystemExit"),
        ("(", "SyntaxError"),
    ],
)
def test_a_wrong_file_is_one_sentence(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        build_settings(read_config())
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    (finding,) = find_problems()
    assert finding["level"] == "error"


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        read_config(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
    ("users", "where", "words"),
    [
        ("file", {}, ""),
        ("file", {"ip": "0.0.0.0"}, "Without TLS"),
        ("file", {"ip": ""}, "Without TLS"),
        ("file", {"ip": "gateway.example"}, "Without TLS"),
        ("file", {"ip": "0.0.0.0", "has_tls": True}, ""),
        ("file", {"ip": "0.0.0.0", "sock": "/s"}, ""),
        ("file", {"allow_origin": "*"}, ""),
        ("header", {}, "set c.ServerApp.sock"),
        ("header", {"sock": "/s"}, ""),
        ("header", {"sock": "/s", "allow_origin": "*"}, "every web site"),
        ("trust", {}, ""),
        ("trust", {"allow_origin": "*"}, "every web site"),
    ],
)
def test_where_a_gateway_may_listen(users: str, where: dict[str, Any], words: str) -> None:
    given = {"ip": "localhost", "sock": "", "has_tls": False, "allow_origin": "", **where}
    settings = RoostGateway(users=users)
    if not words:
        settings.check_address(**given)
        return
    with pytest.raises(ConfigError, match=words):
        settings.check_address(**given)


def test_plain_http_may_be_allowed() -> None:
    RoostGateway(allow_plain_http=True).check_address(ip="0.0.0.0", sock="", has_tls=False, allow_origin="")


def test_the_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]")))
    assert not any(
        map(is_loopback, ("", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.evil.example"))
    )


def test_the_hub_is_named_by_settings_or_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RoostGateway(users="hub")
    with pytest.raises(ConfigError, match="hub_url"):
        settings.find_hub()
    monkeypatch.setenv("JUPYTERHUB_API_URL", "http://hub/api/")
    monkeypatch.setenv("JUPYTERHUB_SERVICE_NAME", "gateway")
    assert settings.find_hub() == ("http://hub/api", "gateway")
    assert RoostGateway(hub_url="u", hub_service="s").find_hub() == ("u", "s")


def test_what_people_can_do_to_each_other_is_said(file: Path) -> None:
    assert find_problems() == []
    file.write_text("c.RoostGateway.admins = []")
    assert find_problems() == []
    file.write_text("c.RoostGateway.shared_accounts = ['local']")
    (finding,) = find_problems()
    assert "kernels of local run on one account" in finding["what"]
    file.write_text("c.RoostGateway.users = 'trust'")
    (finding,) = find_problems()
    assert "All callers are one person" in finding["what"]
