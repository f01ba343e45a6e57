"""Logs of kernels that fill a file system. Two tests use a real one of 2 MiB."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.machine.small_disk import small_disk
from roost.launchers.agent.machine.disk_room import DiskRoom
from roost.testing.deadlines import until

SIZE_BYTES = 2 << 20
WRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
while True:
    try:
        os.write(file, b"x" * 4096)
    except OSError:  # the file system is full
        pass
"""


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, SIZE_BYTES):
        yield tmp_path


def is_cut(room: DiskRoom, path: Path) -> bool:
    """Cut a log and return whether that shows. Its writer may fill the disk meanwhile, also before the mark."""
    room.cut()
    return path.stat().st_size < SIZE_BYTES and b"[roost: earlier lines were removed]" in path.read_bytes()


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(path).f_bavail == 0


async def test_logs_give_way(small_folder: Path) -> None:
    logs = [small_folder / "1", small_folder / "2"]
    logs[1].write_text("short")
    fill(logs[0])
    with contextlib.closing(DiskRoom(small_folder, lambda: logs)) as room:
        room.watch()
        await until(lambda: logs[0].stat().st_size < SIZE_BYTES // 8, "the long log is cut", 60, 0.01)
    assert logs[1].read_text() == "short"


async def test_a_writer_without_end_is_cut_again_and_again(small_folder: Path) -> None:
    path = small_folder / "log"
    path.touch()
    writer = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", WRITER, str(path))
    try:
        with contextlib.closing(DiskRoom(small_folder, lambda: [path])) as room:
            for _ in range(2):
                await until(lambda: not os.statvfs(path).f_bavail, "the log fills the disk", 60, 0.001)
                await until(lambda: is_cut(room, path), "the log is cut", 60, 0.001)
    finally:
        writer.kill()
        await writer.wait()


def test_a_log_keeps_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one line\n" * (1 << 20) + b"the end\n")
    DiskRoom(tmp_path, lambda: [log]).cut()
    assert 1 << 19 < log.stat().st_size < 2 << 20
    assert log.read_bytes().endswith(b"one line\nthe end\n")
