"""A service that is older than its settings says so, in its findings and beside the errors that follow from it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from roost.scheduler.config.read_files import ReadFiles
from roost.scheduler.errors import BackendUnavailable, ConfigError, UnknownKernel
from roost.scheduler.service import old_settings
from roost.scheduler.service.old_settings import OldSettings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "jupyter_roost_config.py"
    file.write_text("")
    return file


@pytest.fixture
def settings(file: Path, monkeypatch: pytest.MonkeyPatch) -> OldSettings:
    monkeypatch.setattr(old_settings, "_LOOK_S", 60.0)
    read = ReadFiles()
    read.note(file)
    return OldSettings(read, "ray", {"address": "head:6379"})


COMMAND = "roost restart-service --backend ray --backend-option address=head:6379"


async def test_doctor_names_the_file_and_the_command(settings: OldSettings, file: Path) -> None:
    assert await settings.find_problems() == []
    file.write_text("c.RoostScheduler.max_gpus_per_user = 1")
    (finding,) = await settings.find_problems()
    assert finding["level"] == "warning"
    assert finding["what"].startswith(f"{file} has changed (")
    assert finding["do"] == f"run `{COMMAND}`: kernels live on"


async def test_errors_that_may_follow_from_old_settings_say_so(settings: OldSettings, file: Path) -> None:
    for sentence in ("unknown policy 'x'; known are y.", "no such thing"):
        assert (await settings.explain(ConfigError(sentence))).user_message == sentence
    file.unlink()
    for problem in (
        ConfigError("unknown policy 'x'; known are y."),
        ConfigError("unknown policy 'x'; known are y"),
    ):
        found = (await settings.explain(problem)).to_remote()
        assert found.message == (
            f"unknown policy 'x'; known are y. The service is older than its settings: {file} is gone. Run `{COMMAND}`."
        )
    guess = (await settings.explain(ConfigError("did you mean gpus?"))).user_message
    assert guess.startswith("did you mean gpus? The service is older than its settings: ")
    for other in (UnknownKernel("There is no kernel x."), BackendUnavailable("It is away.")):
        assert (await settings.explain(other)).user_message == str(other)


async def test_files_that_hang_delay_nothing_for_long(
    settings: OldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_settings, "_LOOK_S", 0.05)
    monkeypatch.setattr(ReadFiles, "list_changes", lambda _: time.sleep(60))
    assert await settings.find_problems() == []
    assert (await settings.explain(ConfigError("no."))).user_message == "no."
