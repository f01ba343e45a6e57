"""Which files of settings have changed since they were read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.scheduler.config.files import load_settings
from roost.scheduler.config.read_files import ReadFiles
from roost.scheduler.errors import ConfigError


def test_files_that_change_come_or_go_are_found(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("user", "system", "missing")]
    for folder in folders[:2]:
        folder.mkdir()
    user, system = (folder / "jupyter_roost_config.py" for folder in folders[:2])
    user.write_text("load_subconfig('more.py')\nc.RoostScheduler.policies = {'mine': 'mine.py:Mine'}")
    (folders[0] / "more.py").write_text("c.RoostScheduler.max_gpus_per_user = 1")
    (folders[0] / "mine.py").write_text("")
    read = ReadFiles()
    settings, _ = load_settings("local", {}, path=list(map(str, folders)), read=read)
    assert settings.max_gpus_per_user == 1
    assert read.list_changes() == []
    os.utime(user, (1, 1))
    user.write_text(user.read_text())
    assert read.list_changes() == [], "it was written as it was"
    user.write_text("")
    system.write_text("")
    (folders[0] / "more.py").write_text("c.RoostScheduler.max_gpus_per_user = 2")
    (folders[0] / "mine.py").unlink()
    folders[2].mkdir()
    (folders[2] / "jupyter_roost_config.json").write_text("{}")
    found = {change.path: change.what for change in read.list_changes()}
    assert found == {
        user: "has changed",
        system: "is new",
        folders[2] / "jupyter_roost_config.json": "is new",
        folders[0] / "more.py": "has changed",
        folders[0] / "mine.py": "is gone",
    }


def test_a_file_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("")
    read = ReadFiles()
    load_settings("local", {"config_file": str(file)}, path=[str(tmp_path)], read=read)
    (tmp_path / "jupyter_roost_config.py").write_text("")
    assert read.list_changes() == []
    file.unlink()
    (change,) = read.list_changes()
    assert str(change) == f"{file} is gone"
    file.mkdir()
    (change,) = read.list_changes()
    assert "has changed" in str(change)


def test_files_of_settings_that_are_wrong_are_noted_too(tmp_path: Path) -> None:
    file = tmp_path / "jupyter_roost_config.py"
    file.write_text("c.RoostScheduler.max_gpu = 1")
    read = ReadFiles()
    with pytest.raises(ConfigError):
        load_settings("local", {}, path=[str(tmp_path)], read=read)
    file.write_text("")
    (change,) = read.list_changes()
    assert str(change).startswith(f"{file} has changed (2")
