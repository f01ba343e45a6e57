"""The identity of a machine, for all of its users."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from roost.launchers.machine_book.machine_id import FILE, find_machine_id


def test_all_callers_get_the_same_identity(tmp_path: Path) -> None:
    first = find_machine_id([tmp_path])
    assert len(first) == 32
    assert find_machine_id([tmp_path]) == first
    assert os.listdir(tmp_path) == [FILE]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o644


def test_another_folder_is_another_machine(tmp_path: Path) -> None:
    """Copies of one image share all but the random part."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert find_machine_id([tmp_path / "one"]) != find_machine_id([tmp_path / "two"])


def test_a_copied_random_part_makes_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = find_machine_id([tmp_path])
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert find_machine_id([tmp_path]) != mine


@pytest.mark.parametrize("kind", ["text", "link", "pipe", "folder", "huge"])
def test_what_a_stranger_has_put_there_does_not_count(kind: str, tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder in (shared, own):
        folder.mkdir()
    path = shared / FILE
    if kind == "text":
        path.write_text("../../etc/passwd\n")
    elif kind == "link":
        (tmp_path / "real").write_text("0" * 32 + "\n")
        path.symlink_to(tmp_path / "real")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("0" * 10_000)
    assert find_machine_id([shared, own]) == find_machine_id([own]) != find_machine_id([])


def test_a_folder_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    assert find_machine_id([tmp_path / "missing", tmp_path]) == find_machine_id([tmp_path])
