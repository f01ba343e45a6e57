"""Where the book is: each way, with folders and a table of mounts of the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.launchers.machine_book.places import Place, find_place, is_private

UID = os.getuid()
MOUNT = "36 25 0:31 {root} {folder} rw,relatime shared:1 - tmpfs tmpfs rw\n"


class Folders:
    """The folders of a machine, and its mounts."""

    def __init__(self, top: Path) -> None:
        self.installed, self.lock, self.tmp = (top / name for name in ("roost", "lock", "tmp"))
        self.mounts = top / "mountinfo"
        self.mounts.write_text("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n")

    def make(self, *folders: Path, mode: int = 0o1777) -> None:
        for folder in folders:
            folder.mkdir()
            folder.chmod(mode)

    def mount(self, folder: Path, root: str) -> None:
        """Add a mount of the folder `root` of a file system."""
        with self.mounts.open("a") as file:
            file.write(MOUNT.format(root=root, folder=folder))

    def find(self, root: int = UID) -> Place:
        return find_place(
            installed=self.installed, shared=(self.lock, self.tmp), mounts=self.mounts, root=root
        )


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    monkeypatch.delenv("ROOST_MACHINE_DIR", raising=False)
    return Folders(tmp_path)


def test_the_folder_of_root_comes_first(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.make(folders.installed, folders.lock, folders.tmp)
    assert folders.find() == Place(folders.installed, "installed")
    monkeypatch.setenv("ROOST_MACHINE_DIR", "/elsewhere")
    assert folders.find() == Place(folders.installed, "installed"), "nobody leaves it by a variable"


def test_a_variable_counts_only_without_it(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.make(folders.lock, folders.tmp)
    monkeypatch.setenv("ROOST_MACHINE_DIR", "/elsewhere")
    assert folders.find() == Place(Path("/elsewhere"), "chosen")


@pytest.mark.parametrize(
    ("mode", "way"), [(0o1777, "installed"), (0o777, "shared"), (0o1755, "shared"), (0o755, "shared")]
)
def test_a_folder_that_is_not_sticky_or_not_for_all_does_not_count(
    mode: int, way: str, folders: Folders
) -> None:
    folders.make(folders.installed, mode=mode)
    folders.make(folders.tmp)
    assert folders.find().way == way


def test_a_folder_of_another_owner_does_not_count(folders: Folders) -> None:
    folders.make(folders.installed, folders.lock, folders.tmp)
    assert folders.find(root=UID + 1).way == "nobody"


def test_a_link_or_a_file_does_not_count(folders: Folders) -> None:
    folders.make(folders.tmp)
    folders.installed.symlink_to(folders.tmp)
    folders.lock.write_text("")
    why = f"{folders.installed} is no folder of root's with mode 1777"
    assert folders.find() == Place(folders.tmp, "shared", why)


def test_the_folder_for_locks_comes_before_tmp(folders: Folders) -> None:
    folders.make(folders.lock, folders.tmp)
    assert folders.find() == Place(folders.lock, "shared")


def test_a_private_tmp_is_no_place(folders: Folders) -> None:
    folders.make(folders.tmp)
    folders.mount(folders.tmp, "/tmp/systemd-private-5f-jupyter.service-X/tmp")
    found = folders.find()
    assert (found.folder, found.way) == (None, "nobody")
    assert found.why == f"{folders.tmp} is private to this user or service"


def test_a_file_system_of_its_own_is_no_private_folder(folders: Folders) -> None:
    folders.make(folders.tmp)
    folders.mount(folders.tmp, "/")
    assert folders.find() == Place(folders.tmp, "shared")


def test_the_last_mount_of_a_folder_counts(folders: Folders) -> None:
    folders.mount(folders.tmp, "/")
    assert not is_private(folders.tmp, folders.mounts)
    folders.mount(folders.tmp, "/inst/ada")
    assert is_private(folders.tmp, folders.mounts)
    assert not is_private(folders.lock, folders.mounts)
    assert not is_private(folders.tmp, folders.mounts.with_name("none"))


def test_a_machine_without_any_folder_says_why(folders: Folders) -> None:
    found = folders.find()
    assert found.way == "nobody"
    assert found.why.endswith("is no folder of root's with the sticky bit")
