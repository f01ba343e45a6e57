"""Which engine is meant, what its `info` says, and what a user reads who cannot reach it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest

from roost.scheduler.backends.docker.cluster import read_node
from roost.scheduler.backends.docker.engine import Engine, EngineError
from roost.scheduler.backends.docker.settings import RoostDockerBackend, find_address
from roost.scheduler.errors import BackendUnavailable, ConfigError


def test_the_setting_comes_before_the_variable() -> None:
    variables = {"DOCKER_HOST": "unix:///run/user/1000/docker.sock"}
    assert find_address("unix:///here", variables) == "unix:///here"
    assert find_address("", variables) == "unix:///run/user/1000/docker.sock"


@pytest.mark.parametrize(
    "address", ["tcp://10.0.0.7:2376", "ssh://n1", "unix://relative", "/run/docker.sock"]
)
def test_an_engine_elsewhere_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="to unix:///PATH"):
        find_address(address, {})


async def test_a_missing_engine_is_named(tmp_path: Path) -> None:
    engine = Engine(f"unix://{tmp_path}/docker.sock")
    with pytest.raises(BackendUnavailable, match="there is no Docker engine at"):
        await engine.call(lambda client: client.info())


async def test_an_engine_that_does_not_answer_is_away(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(path))
        engine = Engine(f"unix://{path}")
        with pytest.raises(BackendUnavailable, match="does not answer"):
            await engine.call(lambda client: client.info())


async def test_who_may_not_use_the_engine_reads_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("unix:///run/docker.sock")

    def refuse() -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(engine, "_connect", refuse)
    with pytest.raises(BackendUnavailable, match="ask the operator for the group"):
        await engine.call(lambda client: client.info())


def test_the_node_is_the_engines_machine() -> None:
    info = {
        "Name": "box", "NCPU": 8, "MemTotal": 1 << 34, "Labels": ["shelf=3", "plain"], "CgroupVersion": "2",
        "MemoryLimit": True,
    }  # fmt: skip
    node = read_node(info, RoostDockerBackend(gpus=2, gpu_model="T4"))
    assert (node.id, node.cpus, node.memory_bytes, node.labels) == ("box", 8.0, 1 << 34, {"shelf": "3"})
    assert [(device.id, device.model) for device in node.devices] == [("0", "T4"), ("1", "T4")]
    assert node.enforcement == "cgroup v2"
    assert read_node({**info, "MemoryLimit": False}, RoostDockerBackend()).enforcement == ""


def test_podman_gives_no_gpus() -> None:
    """It would take the request, and start the container without them."""
    info = {"Name": "box", "Podman": "4.3.1"}
    assert read_node(info, RoostDockerBackend()).gpus == 0
    with pytest.raises(
        ConfigError, match=r"Podman 4\.3\.1 gives no GPUs .*: set c\.RoostDockerBackend\.gpus = 0"
    ):
        read_node(info, RoostDockerBackend(gpus=1))


@pytest.mark.parametrize(
    ("status", "message", "is_taken"),
    [
        (409, 'Conflict. The container name "/roost-claim" is already in use', True),
        (500, 'the container name "roost-claim" is already in use by 1f', True),
        (500, "no space left on device", False),
    ],
)
def test_a_name_can_be_taken_on_both_engines(status: int, message: str, is_taken: bool) -> None:
    assert EngineError(status, message).is_name_taken == is_taken
