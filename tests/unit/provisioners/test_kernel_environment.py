"""The environment and the working directory of a kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.provisioners.kernel_environment import (
    build_environment,
    check_patterns,
    check_variables,
    choose_directory,
)
from roost.scheduler.errors import ConfigError

APPLICATION = {
    "PATH": "/bin", "HOME": "/root", "LANG": "C.UTF-8", "LC_ALL": "C", "TZ": "UTC", "KERNEL_USERNAME": "ada",
    "AWS_SECRET_ACCESS_KEY": "s", "JPY_PARENT_PID": "1", "JUPYTER_TOKEN": "t", "MINE": "1", "SPEC": "2",
}  # fmt: skip


def test_a_local_kernel_gets_the_applications_environment() -> None:
    env = build_environment(APPLICATION, spec_env=["SPEC"], is_local=True)
    assert set(APPLICATION) - set(env) == {"JPY_PARENT_PID", "JUPYTER_TOKEN"}


def test_a_remote_kernel_gets_the_kernelspecs_variables_and_an_allow_list() -> None:
    env = build_environment(APPLICATION, spec_env=["SPEC"], is_local=False)
    assert set(env) == {"LANG", "LC_ALL", "TZ", "KERNEL_USERNAME", "SPEC"}
    assert set(build_environment(APPLICATION, spec_env=[], is_local=False, also=["MIN*"])) - set(env) == {
        "MINE"
    }


def test_a_parent_pid_is_never_passed_on() -> None:
    assert "JPY_PARENT_PID" not in build_environment(
        APPLICATION, spec_env=["JPY_PARENT_PID"], is_local=False, also=["*"]
    )


def test_no_pattern_passes_on_secrets_or_everything() -> None:
    secrets = ("MY_API_KEY", "MY_TOKEN", "MY_DB_PASSWORD", "MY_KEYS", "KERNEL_AUTH", "MY_AWS_SECRET")
    env = dict.fromkeys((*secrets, "MY_KEYBOARD", "MY_PATHS"), "x")
    assert set(build_environment(env, spec_env=[], is_local=False, also=["MY_*"])) == {
        "MY_KEYBOARD",
        "MY_PATHS",
    }
    assert set(build_environment(env, spec_env=["MY_TOKEN"], is_local=False)) == {"MY_TOKEN"}
    check_patterns(["PROJ_*", "A", "*_HOME"])
    for pattern in ("*", "**", "?*", "[A-Z]*", ""):
        with pytest.raises(ConfigError, match="every variable"):
            check_patterns([pattern])


def test_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, wanted = tmp_path / "here", tmp_path / "wanted"
    here.mkdir()
    wanted.mkdir()
    monkeypatch.chdir(here)
    env = {"KERNEL_WORKING_DIR": str(wanted)}
    assert choose_directory(env, "/", is_local=True) == str(wanted)
    assert choose_directory({}, "/", is_local=True) == "/"
    assert choose_directory({}, None, is_local=True) == str(here)
    assert choose_directory({"KERNEL_WORKING_DIR": "/not/there"}, "/nor/there", is_local=True) == str(here)
    assert choose_directory({"KERNEL_WORKING_DIR": "/there/it/is"}, None, is_local=False) == "/there/it/is"
    assert choose_directory({}, ".", is_local=True) == str(here)


def test_a_removed_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert choose_directory({}, None, is_local=True) == os.path.expanduser("~")


def test_a_kernelspec_cannot_say_whose_its_kernels_are() -> None:
    check_variables({"KERNEL_WORKING_DIR": "/data"})
    with pytest.raises(ConfigError, match="KERNEL_USERNAME in the kernelspec's env is refused"):
        check_variables({"KERNEL_USERNAME": "mallory"})
