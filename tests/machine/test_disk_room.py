"""Room for small files on a file system that kernels' logs fill. The test uses a real one of 2 MiB."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.machine.small_disk import small_disk
from roost.launchers.agent.machine.disk_room import DiskRoom
from roost.launchers.daemon.private_files import write_private
from roost.testing.deadlines import allow_s, until

SIZE_BYTES = 2 << 20
WRITER = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
while True:
    try:
        os.write(file, b"x" * 65_536)
    except OSError:  # the file system is full
        pass
"""


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, SIZE_BYTES):
        yield tmp_path


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(path).f_bavail == 0


async def test_a_full_file_system_has_room_for_small_files(small_folder: Path) -> None:
    """Files other than logs fill the file system, so the agent gives up its reserve of disk space."""
    with contextlib.closing(DiskRoom(small_folder, list)) as room:
        fill(small_folder / "others")
        with pytest.raises(OSError, match="No space"):
            write_private(small_folder / "lease", b"lease")
        room.write(lambda: write_private(small_folder / "lease", b"lease"))
    assert (small_folder / "lease").read_bytes() == b"lease"


async def test_logs_give_way_and_the_reserve_comes_back(small_folder: Path) -> None:
    logs = [small_folder / "1", small_folder / "2"]
    room = DiskRoom(small_folder, lambda: logs)
    fill(logs[0])
    room.write(lambda: write_private(small_folder / "lease", b"lease"))
    assert logs[0].stat().st_size < 64 << 10
    assert not (small_folder / "reserve").exists()
    try:
        await until((small_folder / "reserve").exists, "the next look takes the reserve again", 60, 0.01)
        fill(logs[1])
        await until(
            lambda: os.statvfs(small_folder).f_bavail * 4096 >= SIZE_BYTES // 2,
            "a look cuts the log",
            60,
            0.01,
        )
        assert logs[1].stat().st_size < SIZE_BYTES // 4
    finally:
        room.close()


def test_other_errors_are_errors(tmp_path: Path) -> None:
    room = DiskRoom(tmp_path, list)
    with pytest.raises(FileNotFoundError):
        room.write(lambda: write_private(tmp_path / "no" / "folder", b""))


async def test_a_writer_without_end_fills_less_than_half(tmp_path: Path) -> None:
    size_bytes = 256 << 20
    with small_disk(tmp_path, size_bytes):
        path = tmp_path / "log"
        path.touch()
        room = DiskRoom(tmp_path, lambda: [path])
        room.watch()
        writer = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", WRITER, str(path))
        try:
            most_bytes, began = 0, time.monotonic()
            last, end, give_up_at = began, began + 2, began + allow_s(30)
            while (now := time.monotonic()) < end or (most_bytes <= 8 << 20 and now < give_up_at):
                size = path.stat().st_size
                if time.monotonic() - last < 0.05:  # else this process had no processor, and could not watch
                    most_bytes = max(most_bytes, size)
                last = time.monotonic()
                await asyncio.sleep(0.001)
            assert most_bytes > 8 << 20, "the writer is too slow for this test"
            assert most_bytes < size_bytes // 2
        finally:
            writer.kill()
            await writer.wait()
            room.close()
