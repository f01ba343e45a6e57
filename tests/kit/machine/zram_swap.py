"""Swap in compressed memory (zram), for machines that have none. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roost.testing.deadlines import allow_s

_DEVICE = Path("/sys/block/zram0")


def why_not() -> str:
    """Return why this machine cannot have such a swap; empty if it can."""
    if os.geteuid() != 0:
        return "only root can turn on swap"
    if not _DEVICE.exists():
        return "this system has no zram: load its kernel module"
    if shutil.which("mkswap") is None:
        return "mkswap is missing: install util-linux"
    if (_DEVICE / "disksize").read_text().strip() != "0":
        return "somebody else uses /dev/zram0"
    return ""


@contextmanager
def zram(mib: int = 512) -> Iterator[None]:
    """Turn on a swap of this size, and turn it off at the end."""
    (_DEVICE / "disksize").write_text(f"{mib}M")
    try:
        for command in (["mkswap", "/dev/zram0"], ["swapon", "/dev/zram0"]):
            subprocess.run(command, check=True, capture_output=True, timeout=allow_s(30))
        try:
            yield
        finally:
            subprocess.run(["swapoff", "/dev/zram0"], check=True, capture_output=True, timeout=allow_s(60))
    finally:
        (_DEVICE / "reset").write_text("1")


def read_memory(pid: int) -> tuple[float, float]:
    """Return the MiB of a process in memory (PSS) and in the swap. Shared pages count in part."""
    parts = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    )
    return tuple(int(parts[name].split()[0]) / 1024 for name in ("Pss", "SwapPss"))  # type: ignore[return-value]
