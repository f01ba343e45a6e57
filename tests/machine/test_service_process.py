"""What a service that cannot start says to its starter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.machine.daemons import agent_folder
from roost.launchers.daemon import daemon
from roost.scheduler.client.client import connect, disconnect
from roost.scheduler.client.service_folder import service_command, service_folder
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s


def ensure(options: dict[str, Any]) -> dict[str, Any]:
    folder = service_folder("local", options)
    argv, env = service_command("local", folder, options)
    return daemon.ensure(folder, argv, env=env, deadline_s=allow_s(30))


def test_a_wrong_configuration_is_said_by_the_starter(runtime_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text("c.RoostScheduler.max_gpu = 1")
    with pytest.raises(daemon.DaemonError, match=r"config\.py: there is no option of c\.RoostSch") as caught:
        ensure({"config_file": str(file)})
    assert caught.value.kind == "ConfigError"
    assert [path.name for path in runtime_dir.iterdir()] == ["machine"]


def test_a_python_that_does_not_exist_is_named_with_the_variable(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_SERVICE_PYTHON", "/nowhere/python")
    with pytest.raises(
        BackendUnavailable, match="ROOST_SERVICE_PYTHON is /nowhere/python: correct it, or unset it"
    ):
        connect("local").kernels().result(allow_s(60))
    disconnect()


def test_a_runtime_folder_that_is_too_deep_is_said_by_the_starter(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = runtime_dir / ("x" * 90)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("ROOST_RUNTIME_DIR", str(deep))
    with pytest.raises(daemon.DaemonError, match="bytes that a socket's path may have"):
        ensure({})
    assert not agent_folder(deep).exists(), "an agent was started for nothing"
