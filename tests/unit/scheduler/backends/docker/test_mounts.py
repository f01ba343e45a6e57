"""The mounts of volumes: the real path of a folder counts, and nothing of the engine or of roost is mounted."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from roost.scheduler.backends.docker.mounts import build_mounts, list_guarded
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.scheduler.backends.docker.volumes import Volume
from roost.scheduler.errors import ConfigError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return an allowed folder. Beside it is the folder `outside`."""
    (tmp_path / "data" / "sets").mkdir(parents=True)
    (tmp_path / "outside" / "sets").mkdir(parents=True)
    return tmp_path / "data"


def mount(
    source: Path, *allowed: str, is_writable: bool = False, guarded: tuple[str, ...] = ()
) -> dict[str, Any]:
    volume = Volume(source=str(source), target="/x", is_writable=is_writable)
    (built,) = build_mounts([volume], allowed, guarded)
    return built


def test_a_folder_is_mounted_alone_and_never_made(data: Path) -> None:
    assert mount(data / "sets", str(data)) == {
        "Type": "bind",
        "Source": str(data / "sets"),
        "Target": "/x",
        "ReadOnly": True,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }
    assert mount(data, f"{data}:rw", is_writable=True)["ReadOnly"] is False
    with pytest.raises(ConfigError, match=r"cannot be mounted \(No such file or directory\): make it"):
        mount(data / "missing", str(data))
    assert not (data / "missing").exists()


def test_a_volume_that_is_read_is_not_filled_from_the_image() -> None:
    (built,) = build_mounts([Volume(source="models", target="/x", is_writable=False)], ["models"], [])
    assert built == {
        "Type": "volume", "Source": "models", "Target": "/x", "ReadOnly": True, "VolumeOptions": {"NoCopy": True},
    }  # fmt: skip


def test_a_link_counts_by_where_it_leads(data: Path) -> None:
    (data / "inner").symlink_to("sets")
    assert mount(data / "inner", str(data))["Source"] == str(data / "sets")
    (data / "out").symlink_to("../outside")
    for path in (data / "out", data / "out" / "sets"):
        with pytest.raises(ConfigError, match=r"which is really '.*/outside.*', is not allowed here"):
            mount(path, str(data))
    (data / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="cannot be mounted"):
        mount(data / "loop", str(data))


def test_a_link_into_a_read_only_folder_gives_no_right_to_write(data: Path) -> None:
    outside = data.parent / "outside"
    (outside / "link").symlink_to(data)
    with pytest.raises(ConfigError, match="may only be read here"):
        mount(outside / "link", str(data), f"{outside}:rw", is_writable=True)


def test_an_allowed_folder_may_be_a_link_of_the_operator(data: Path) -> None:
    link = data.parent / "link"
    link.symlink_to(data)
    assert mount(link / "sets", str(link))["Source"] == str(data / "sets")
    root = data.parent / "root"
    root.symlink_to("/")
    with pytest.raises(ConfigError, match="is not allowed here"):
        mount(root / "usr", str(root))


def test_only_folders_are_mounted(data: Path) -> None:
    (data / "file").write_text("")
    os.mkfifo(data / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data / "sock"))
        for name in ("file", "pipe", "sock", "file/x"):
            with pytest.raises(ConfigError, match=r"cannot be mounted \((it is no folder|Not a directory)\)"):
                mount(data / name, str(data))


@pytest.mark.parametrize("guarded", ["sets/docker.sock", "sets", "."])
def test_a_folder_that_contains_what_is_guarded_is_refused(guarded: str, data: Path) -> None:
    path = os.path.normpath(data / guarded)
    with pytest.raises(ConfigError, match="is not for kernels: name another folder"):
        mount(data / "sets", str(data), guarded=(path,))
    (data / "link").symlink_to("sets")
    with pytest.raises(ConfigError, match="is not for kernels: name another folder"):
        mount(data / "link", str(data), guarded=(path,))


def test_the_engine_the_system_and_the_service_are_guarded(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = data.parent / "runtime"
    monkeypatch.setenv("ROOST_RUNTIME_DIR", str(runtime))
    (data / "engine.sock").symlink_to(data.parent / "real.sock")
    settings = RoostDockerBackend(identity_file=str(data.parent / "keys" / "identity.json"))
    guarded = list_guarded(settings, f"unix://{data}/engine.sock", "/srv/docker")
    expected = [data.parent / "real.sock", runtime, data.parent / "keys" / "identity.json"]
    assert {"/proc", "/sys", "/dev", "/srv/docker", *map(str, expected)} <= set(guarded)
    for path in ("/proc/1", "/sys", "/dev/shm", "/run", "/var", "/", "/srv"):
        with pytest.raises(ConfigError):
            mount(Path(path), "/run", "/var", "/srv", guarded=tuple(guarded))
