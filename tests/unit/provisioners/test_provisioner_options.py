"""The options, addresses and errors of a provisioner, with a fake service."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager, KernelManager
from traitlets.config import Config

from kit.fakes.service import FakeService
from kit.jupyter.kernel_managers import manager, the_start
from kit.jupyter.kernelspecs import kernelspecs
from roost.provisioners import RoostProvisioner
from roost.provisioners.application import CommandNotFound
from roost.scheduler.backends.registry import backend_names, get_spec
from roost.scheduler.client.client import disconnect
from roost.scheduler.errors import (
    ConfigError,
)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"gpu": 1}, "named gpu: did you mean"),
        ({"gpus": 1.5}, "gpus must be"),
        ({"fork": "perhaps"}, "fork"),
        ({"encrypt": "maybe"}, "encrypt = 'maybe' is not possible: give one of auto, never, required"),
        ({"backend_options": None}, "backend_options = None is not an object"),
        ({"backend_options": {"gpus": 8}}, "'gpus': for local, a kernelspec can set nothing"),
        ({"backend": "ray", "backend_options": {"config_file": "/x"}}, "can set only the address"),
        ({"backend": "ray", "backend_options": {"address": 7}}, "address = 7 is not a text"),
    ],
)
async def test_wrong_options_start_nothing(
    service: FakeService, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    km = manager(tmp_path, config=config)
    with pytest.raises(ConfigError, match=said):
        await km.start_kernel()
    assert not service.calls


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"env": {"A": 1}}, "env is not an object of names and texts"),
        ({"env": {"A=B": "1"}}, "env has a variable named 'A=B'"),
        ({"argv": [1, 2]}, "argv is empty or not a list of texts"),
    ],
)
async def test_a_malformed_kernelspec_starts_nothing(
    service: FakeService, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    km = manager(tmp_path, **values)
    with pytest.raises(ConfigError, match=f"In {tmp_path}/kernels/roosted/kernel.json {said}"):
        await km.start_kernel()
    assert not service.calls


async def test_a_kernelspec_names_its_cluster(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's options stay in force, and an application that adopts the kernel finds the same service."""
    config = Config({"RoostProvisioner": {"backend_options": {"config_file": "/caps.py"}}})
    at = {"address": "192.0.2.1:6379"}
    made = RoostProvisioner(
        kernel_id="k", kernel_spec=KernelSpec(), backend="ray", backend_options=at, config=config
    )
    assert made.backend_options == {"config_file": "/caps.py", **at}
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.2:6379")
    named = RoostProvisioner(kernel_id="k", kernel_spec=KernelSpec(), backend="ray")
    info = await named.get_provisioner_info()
    assert info["backend_options"] == {"address": "192.0.2.2:6379"}
    disconnect()


async def test_a_kernelspec_overrides_the_configuration(service: FakeService, tmp_path: Path) -> None:
    config = Config({"RoostProvisioner": {"cpus": 1, "memory": "1GiB"}})
    km = AsyncKernelManager(
        kernel_name="roosted", kernel_spec_manager=kernelspecs(tmp_path, config={"cpus": 4}), config=config
    )
    await km.start_kernel()
    assert the_start(service).request.cpus == 4.0
    assert the_start(service).request.memory_bytes == 1 << 30
    await km.shutdown_kernel(now=True)


async def test_ipc_has_socket_files_in_a_private_folder(service: FakeService, tmp_path: Path) -> None:
    km = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=kernelspecs(tmp_path), transport="ipc")
    await km.start_kernel()
    connection = the_start(service).connection
    assert connection.ip.startswith(os.environ["ROOST_RUNTIME_DIR"])
    assert km.ip == connection.ip
    assert sorted(km.ports) == [1, 2, 3, 4, 5]
    assert connection.curve_publickey is None
    await km.shutdown_kernel(now=True)


async def test_one_warning_about_a_kernel_without_encryption(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    km = manager(tmp_path, argv=["sh", "{connection_file}"], metadata={"supported_encryption": []})
    await km.start_kernel()
    await km.restart_kernel(now=True)
    assert caplog.text.count("not encrypted") == 1
    assert the_start(service).argv == ("sh", "{connection_file}")
    await km.shutdown_kernel(now=True)


async def test_a_backend_can_refuse_a_kernel_without_encryption(service: FakeService, tmp_path: Path) -> None:
    """The same kernel only gets a warning elsewhere."""
    argv, plain = ["sh", "{connection_file}"], {"supported_encryption": []}
    assert [name for name in backend_names() if get_spec(name).requires_encryption] == ["ssh"]
    km = manager(tmp_path, argv=argv, metadata=plain, config={"backend": "ssh"})
    with pytest.raises(
        ConfigError, match="The backend ssh starts no kernel without encryption, but its kernelspec"
    ):
        await km.start_kernel()
    assert not service.calls
    km = manager(tmp_path, argv=argv, metadata=plain)
    await km.start_kernel()
    assert the_start(service).argv == ("sh", "{connection_file}")
    await km.shutdown_kernel(now=True)


async def test_a_command_may_do_without_a_connection_file(service: FakeService, tmp_path: Path) -> None:
    """jupyter_client would start such a command too, so roost starts it and does not refuse it."""
    km = manager(tmp_path, argv=["no-such-command"])
    await km.start_kernel()
    assert the_start(service).argv == ("no-such-command",)
    await km.shutdown_kernel(now=True)


def test_paths_are_resolved_as_the_kernel_sees_them(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path, KernelManager)
    (tmp_path / "code.py").write_text("")
    km.start_kernel(cwd=str(tmp_path))
    assert km.resolve_path("code.py") == (tmp_path / "code.py").as_posix()
    assert km.resolve_path("none.py") is None
    km.shutdown_kernel(now=True)


async def test_ipc_at_the_callers_address(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    km = AsyncKernelManager(
        kernel_name="roosted", kernel_spec_manager=kernelspecs(tmp_path), transport="ipc", ip="mine"
    )
    await km.start_kernel()
    assert the_start(service).connection.ip == f"{tmp_path}/mine"
    assert km.ip == "mine"
    await km.shutdown_kernel(now=True)
    km.ip = "x" * 120
    with pytest.raises(ConfigError, match="too long"):
        await km.start_kernel()


def test_command_not_found_can_be_pickled() -> None:
    problem = pickle.loads(pickle.dumps(CommandNotFound("R is not there.", lease="l")))
    assert isinstance(problem, FileNotFoundError)
    assert (str(problem), problem.fields) == ("R is not there.", {"lease": "l"})
