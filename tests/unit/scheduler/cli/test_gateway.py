"""`roost gateway token`: the tokens of people."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from roost.provisioners.gateway.token_file import TokenFile
from roost.scheduler.cli import gateway
from roost.scheduler.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the gateway's configuration, which is not there yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    return tmp_path / "roost_gateway_config.py"


def test_a_token_is_shown_once_and_removed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.add_token(argparse.Namespace(user="ada", days=90.0, json=True))
    text = json.loads(capsys.readouterr().out)["token"]
    assert TokenFile().find(text) is not None
    gateway.list_tokens(argparse.Namespace(json=True))
    assert text not in capsys.readouterr().out
    gateway.remove_tokens(argparse.Namespace(name="ada", json=True))
    assert TokenFile().find(text) is None


def test_a_wrong_configuration_changes_no_token(file: Path) -> None:
    TokenFile().add("eve", 1.0)
    file.write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        gateway.add_token(argparse.Namespace(user="ada", days=90.0, json=True))
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        gateway.remove_tokens(argparse.Namespace(name="eve", json=True))
    assert [token.user for token in TokenFile().list_all()] == ["eve"]
