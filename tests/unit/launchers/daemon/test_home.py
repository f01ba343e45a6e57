"""A user without a home, or without a name, as in a container with a uid of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.launchers.daemon.private_files import home_folder, settle_home, state_folder
from roost.launchers.daemon.process import name_user
from roost.provisioners.kernel_connection import choose_connection_folder
from roost.scheduler.config.files import load_settings


@pytest.fixture
def nobody(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take this user's name and home away. Return the folder of the runtime folder that stands for a home."""

    def find_none(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", find_none)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.access", lambda folder, mode: str(folder) != "/")  # root may write anywhere
    return runtime_dir / "home"


def test_a_process_without_a_home_gets_one_in_the_runtime_folder(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_connection_folder() == ""
    with pytest.raises(RuntimeError):
        load_settings("local", {})
    monkeypatch.setenv("HOME", "")  # so that it is as before at the end
    monkeypatch.delenv("HOME")
    settle_home()
    assert os.environ["HOME"] == str(nobody)
    load_settings("local", {})
    assert nobody.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", [None, "", "/"])
def test_state_lies_below_the_runtime_folder(
    nobody: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert home_folder() == nobody
    assert state_folder("a") == nobody / ".local/state/roost/a"


def test_a_home_stays(nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settle_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert state_folder() == tmp_path / ".local/state/roost"
    assert not nobody.exists()


def test_a_user_without_a_name_has_a_number(nobody: Path) -> None:
    assert name_user() == str(os.getuid())
