"""`roost doctor` finds servers that are older than their configuration."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from roost.provisioners.server_extension import older_servers
from roost.provisioners.server_extension.older_servers import find_problems


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a configuration file of Jupyter's that names roost. A server runs, which is this process."""
    monkeypatch.setattr(older_servers, "jupyter_config_path", lambda: [str(tmp_path), str(tmp_path / "none")])
    monkeypatch.setattr(older_servers, "jupyter_runtime_dir", lambda: str(tmp_path))
    server = {"pid": os.getpid(), "url": "http://localhost:8888/"}
    (tmp_path / f"jpserver-{os.getpid()}.json").write_text(json.dumps(server))
    file = tmp_path / "jupyter_server_config.py"
    file.write_text("c.RoostExtension.adopt = False")
    return file


def test_a_server_that_is_older_than_its_file_is_reported(file: Path) -> None:
    (finding,) = find_problems()
    assert finding["level"] == "warning"
    assert finding["what"].startswith(f"{file} has changed (")
    assert "http://localhost:8888/ has its earlier settings" in finding["what"]


def test_a_file_of_another_environment_is_no_problem(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`roost doctor` may run in an environment other than the server's, which has files of its own."""
    monkeypatch.setattr(older_servers.sys, "prefix", str(file.parent))
    assert find_problems() == []


def test_a_file_that_is_older_than_the_server_is_no_problem(file: Path) -> None:
    os.utime(file, (1, 1))
    assert find_problems() == []


def test_a_file_that_does_not_name_roost_is_no_problem(file: Path) -> None:
    file.write_text("c.ServerApp.port = 1")
    assert find_problems() == []


@pytest.mark.parametrize("noted", ["{", "[]", '{"pid": 1}', '{"pid": 99999999, "url": "x"}', '{"pid": "x"}'])
def test_a_server_that_has_ended_is_no_problem(file: Path, noted: str) -> None:
    next(file.parent.glob("jpserver-*")).write_text(noted)
    assert find_problems() == []


def test_another_process_with_the_pid_is_no_server(file: Path) -> None:
    server = next(file.parent.glob("jpserver-*"))
    before = time.time() - 1e7
    os.utime(server, (before, before))
    assert find_problems() == []
