"""The place of a kernel's connection file, and whether a kernel sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from roost.launchers.agent.launch.connection_file import (
    find_blind,
    find_file,
    remove_folder,
    write_connection,
)
from roost.launchers.protocol.messages import Connection
from roost.testing.deadlines import until_blocking

CONNECTION = Connection(shell_port=7, key="secret")


def test_a_file_lies_where_containers_show_it_and_goes_with_its_kernel(tmp_path: Path) -> None:
    folder, shown_in = tmp_path / "k", tmp_path / "jupyter" / "roost"
    folder.mkdir()
    for _ in range(2):  # of a restart, too
        path = write_connection(folder, "one", CONNECTION, shown_in=str(shown_in))
    assert path == shown_in / "kernel-one.json"
    assert json.loads(path.read_text())["key"] == "secret"
    assert (path.stat().st_mode & 0o777, shown_in.stat().st_mode & 0o777) == (0o600, 0o700)
    inner = write_connection(folder, "one", CONNECTION)  # the kernel is forked when it is started again
    assert not inner.is_symlink()
    assert list(shown_in.iterdir()) == []
    write_connection(folder, "one", CONNECTION, shown_in=str(shown_in))
    remove_folder(folder)
    assert not folder.exists()
    assert list(shown_in.iterdir()) == []


def test_a_file_is_found_by_the_name_that_its_kernels_command_has(tmp_path: Path) -> None:
    """Other links on the way stay: a home is often one, and no command line has its end."""
    (tmp_path / "disk" / "k").mkdir(parents=True)
    home = tmp_path / "home"
    home.symlink_to(tmp_path / "disk")
    for shown_in in (str(home / "jupyter"), ""):
        path = write_connection(home / "k", "one", CONNECTION, shown_in=shown_in)
        assert find_file(home / "k", "one") == path
        assert str(path).startswith(str(home))


@pytest.mark.parametrize("shown_in", ["", "/proc/roost", "open"])
def test_a_folder_that_cannot_be_used_does_not_stop_a_kernel(tmp_path: Path, shown_in: str) -> None:
    folder, usable_by_all = tmp_path / "k", tmp_path / "open"
    folder.mkdir()
    usable_by_all.mkdir()
    usable_by_all.chmod(0o777)
    shown_in = str(usable_by_all) if shown_in == "open" else shown_in
    path = write_connection(folder, "one", CONNECTION, shown_in=shown_in)
    assert path == folder / "kernel-one.json"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    remove_folder(folder)
    assert not folder.exists()


def test_a_process_that_sees_its_file_is_not_blind(tmp_path: Path) -> None:
    path = tmp_path / "kernel-one.json"
    path.write_text("{}")
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()", str(path)], stdin=subprocess.PIPE
    ) as process:
        assert find_blind(path) == frozenset()
        path.unlink()
        until_blocking(lambda: process.pid in find_blind(path), "the process does not see it any more", 10)
        process.communicate(b"\n")
