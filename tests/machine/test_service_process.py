"""The service as a process: it is started once, killed, replaced and terminated."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kit.machine.daemons import agent_folder
from roost.launchers.daemon import daemon
from roost.launchers.protocol.rpc_client import RpcClient
from roost.scheduler.client.client import connect, disconnect
from roost.scheduler.client.service_folder import service_command, service_folder
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s


def ensure(options: dict[str, Any]) -> dict[str, Any]:
    folder = service_folder("local", options)
    argv, env = service_command("local", folder, options)
    return daemon.ensure(folder, argv, env=env, deadline_s=allow_s(30))


async def left(folder: Path) -> None:
    """Wait until the daemon of this folder has released the folder's lock."""

    def take() -> None:
        with open(folder / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    await asyncio.wait_for(asyncio.to_thread(take), allow_s(60))


async def test_a_process_serves_is_killed_and_is_replaced(runtime_dir: Path) -> None:
    options = {"gpus": 1, "cpus": 1}
    folder = service_folder("local", options)
    first = await asyncio.to_thread(ensure, options)
    assert await asyncio.to_thread(ensure, options) == first
    os.kill(first["pid"], signal.SIGKILL)
    await left(folder)
    assert (folder / "socket").exists()
    second = await asyncio.to_thread(ensure, options)
    assert second["pid"] != first["pid"]
    client = RpcClient(second["endpoint"])
    await client.connect(timeout_s=allow_s(60))
    nodes = (await client.call("nodes", {}, timeout_s=allow_s(60)))["nodes"]
    assert [len(node["devices"]) for node in nodes] == [1]
    await client.call("leave", {}, timeout_s=allow_s(60))
    await client.close()
    await left(folder)
    third = await asyncio.to_thread(ensure, options)
    os.kill(third["pid"], signal.SIGTERM)
    await left(folder)
    await _end_agent(runtime_dir)


async def _end_agent(runtime_dir: Path) -> None:
    ready = daemon.ensure(agent_folder(runtime_dir), ["false"], deadline_s=5)
    os.kill(ready["pid"], signal.SIGTERM)
    await left(agent_folder(runtime_dir))


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
