"""Idle kernels whose memory goes to a real swap and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.machine import zram_swap
from kit.machine.daemons import settle
from kit.machine.started_kernels import start_as
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = [
    pytest.mark.backends("local", why="the same agent on every backend"),
    pytest.mark.skipif(bool(zram_swap.why_not()), reason=zram_swap.why_not()),
]
AFTER_S = 1.0


@pytest.fixture
def swapping_runtime_dir(runtime_dir: Path) -> Iterator[Path]:
    """Yield the runtime folder, on a machine with swap. All kernels end before the swap is turned off."""
    with zram_swap.zram():
        yield runtime_dir
        settle(runtime_dir)


def test_an_idle_kernel_is_paged_out_and_its_next_cell_runs(swapping_runtime_dir: Path) -> None:
    with start_as(options={"page_out_after_s": AFTER_S}) as kernel:
        pid = int(kernel.execute("import os; big = list(map(str, range(200_000))); os.getpid()").text)
        before, _ = zram_swap.read_memory(pid)
        until_blocking(
            lambda: zram_swap.read_memory(pid)[0] < before / 2,
            lambda: f"half of {before} B are paged out: {zram_swap.read_memory(pid)}",
            60,
            0.1,
        )
        after, swapped = zram_swap.read_memory(pid)
        assert after + swapped > before / 2, "its pages are in the swap"
        assert kernel.execute("len(big), big[-1]", timeout_s=allow_s(20)).text == "(200000, '199999')"
