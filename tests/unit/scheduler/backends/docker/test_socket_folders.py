"""The folders in which containers of a Podman without root have their sockets."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.scheduler.backends.docker.images import find_numbers
from roost.scheduler.backends.docker.mounts import list_guarded
from roost.scheduler.backends.docker.names import SOCKETS_LABEL
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.scheduler.backends.docker.socket_folders import SocketFolders
from roost.scheduler.errors import LaunchError


@pytest.fixture
def folders() -> Iterator[SocketFolders]:
    with tempfile.TemporaryDirectory(prefix="roost-", dir="/tmp") as folder:  # paths of sockets are short
        (Path(folder) / "podman.sock").touch()
        yield SocketFolders(f"unix://{folder}/podman.sock")


async def test_each_container_has_a_private_folder(folders: SocketFolders) -> None:
    one, two = Path(await folders.make()), Path(await folders.make())
    assert one != two
    for folder in (one, two, folders.base):
        assert folder.stat().st_mode & 0o777 == 0o700
    (one / "socket").touch()
    for _ in range(2):
        await folders.remove({SOCKETS_LABEL: str(one)})
    assert (one.exists(), two.exists()) == (False, True)
    address = f"unix://{folders.base.parent}/podman.sock"
    assert str(folders.base) in list_guarded(RoostDockerBackend(), address, ""), "no kernel may mount it"


async def test_a_label_removes_no_other_folder(folders: SocketFolders) -> None:
    home = folders.base.parent / "home"
    home.mkdir()
    await folders.make()
    for named in (
        str(home),
        str(folders.base / ".." / "home"),
        str(folders.base),
        f"{folders.base}/..",
        "",
        "/",
    ):
        await folders.remove({SOCKETS_LABEL: named})
    await folders.remove({})
    assert home.is_dir()
    assert folders.base.is_dir()


async def test_only_old_folders_without_a_container_are_left_behind(folders: SocketFolders) -> None:
    await folders.remove_left([])  # there are none yet
    held, left, young = [Path(await folders.make()) for _ in range(3)]
    for folder in (held, left):
        os.utime(folder, (0, time.time() - 1_000))
    await folders.remove_left([{"Labels": {SOCKETS_LABEL: str(held)}}, {"Labels": {}}])
    assert [folder.exists() for folder in (held, left, young)] == [True, False, True]


async def test_a_path_that_is_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    (folder / "podman.sock").touch()
    with pytest.raises(LaunchError, match="too long: use a shorter one"):
        await SocketFolders(f"unix://{folder}/podman.sock").make()


def test_the_user_of_an_image_needs_numbers() -> None:
    assert find_numbers("1000:100", "i") == (1000, 100)
    assert find_numbers("1000", "i") == (1000, 1000)
    for user in ("jovyan", "1000:users"):
        with pytest.raises(LaunchError, match=r"needs numbers: set c\.RoostDockerBackend\.user"):
            find_numbers(user, "i")
