"""Idle kernels whose memory goes to a real swap and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import roost
from kit.machine import zram_swap
from kit.machine.daemons import settle
from roost.provisioners.kernel_object import BlockingKernel
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s

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


def start(**options: object) -> BlockingKernel:
    """Start kernels until one is forked, and return it. Kernels are executed until a zygote is ready."""
    deadline = time.monotonic() + allow_s(60)
    while True:
        kernel = roost.start_kernel("python3", backend="local", backend_options=options)
        if connect("local", **options).kernel(kernel.id).result(allow_s(10)).how == "forked":
            return kernel
        kernel.stop()
        assert time.monotonic() < deadline, "no kernel was forked"


def test_an_idle_kernel_is_paged_out_and_its_next_cell_runs(swapping_runtime_dir: Path) -> None:
    with start(page_out_after_s=AFTER_S) as kernel:
        pid = int(kernel.execute("import os; big = list(map(str, range(200_000))); os.getpid()").text)
        before, _ = zram_swap.read_memory(pid)
        deadline = time.monotonic() + allow_s(60)
        while (after := zram_swap.read_memory(pid)[0]) >= before / 2:
            assert time.monotonic() < deadline, zram_swap.read_memory(pid)
            time.sleep(0.1)
        swapped = zram_swap.read_memory(pid)[1]
        assert after + swapped > before / 2, "its pages are in the swap"
        assert kernel.execute("len(big), big[-1]", timeout_s=allow_s(20)).text == "(200000, '199999')"
