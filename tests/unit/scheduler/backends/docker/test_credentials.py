"""Credentials for registries: those of `docker login`, for one registry each, and never in an error."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from roost.scheduler.backends.docker.credentials import CredentialsError, read_credentials

HELPER = """#!/bin/sh
read -r registry
echo '{"Username": "ada", "Secret": "of-'"$registry"'"}'
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(content))


def encode(login: str) -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


def test_each_registry_gets_its_own_credentials(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_credentials("ghcr.io/team/python") is None
    write(
        folder, {"auths": {"ghcr.io": encode("ada:hush"), "https://index.docker.io/v1/": encode("bob:hub")}}
    )
    with caplog.at_level(logging.DEBUG):
        found = read_credentials("ghcr.io/team/python")
    assert found is not None
    assert (found["username"], found["password"]) == ("ada", "hush")
    assert "hush" not in caplog.text
    assert (read_credentials("team/python") or {})["password"] == "hub"
    for repository in (
        "evil.example.org/ghcr.io/python",
        "ghcr.io.example.org/python",
        "127.0.0.1:5000/python",
    ):
        assert read_credentials(repository) is None


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_a_helper_program_knows_them(key: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "docker-credential-test"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    write(folder, {key: "test" if key == "credsStore" else {"ghcr.io": "test"}})
    found = read_credentials("ghcr.io/team/python")
    assert found is not None
    assert (found["Username"], found["Password"]) == ("ada", "of-ghcr.io")


@pytest.mark.filterwarnings("ignore:docker-credential-missing not installed:UserWarning")
@pytest.mark.parametrize("content", ['{"credsStore": "missing"}', '{"auths": {"ghcr.io": {"auth": "hush"}}}'])
def test_what_cannot_be_read_is_one_clause_without_secrets(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(
        CredentialsError, match=r"^the credentials of its registry cannot be read \("
    ) as refused:
        read_credentials("ghcr.io/team/python")
    assert "hush" not in str(refused.value)
