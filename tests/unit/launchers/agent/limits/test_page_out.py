"""The choice of kernels that page their memory out to swap. The test writes the files of /proc itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from roost.launchers.agent.limits.page_out import SIGNAL, PageOut
from roost.launchers.zygote import page_out as zygote
from roost.testing.deadlines import allow_s, until

TICKS_PER_S = 100


class Proc:
    """A folder with files like those of /proc, which the tests write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pressure").mkdir()
        self.set_swap(1000, 900)
        self.set_pressure(0.0)

    def set_swap(self, total: int, free: int) -> None:
        text = f"MemTotal: 5 kB\nSwapTotal:    {total} kB\nSwapFree: {free} kB\n"
        (self.folder / "meminfo").write_text(text)

    def set_pressure(self, percent: float) -> None:
        line = f"avg10={percent:.2f} avg60=99.00 avg300=99.00 total=7"
        (self.folder / "pressure/memory").write_text(f"some {line}\nfull {line}\n")

    def set_cpu(self, pid: int, seconds: float) -> None:
        (self.folder / str(pid)).mkdir(exist_ok=True)
        before = "S 1 2 3 0 -1 4194304 1 0 0 0"
        text = f"{pid} (a name) b) {before} {int(seconds * TICKS_PER_S)} 0 0 0 20 0 9\n"
        (self.folder / str(pid) / "stat").write_text(text)

    def set_resident(self, pid: int, mib: float) -> None:
        """Give a process so much resident memory of its own, beside 10 MiB of files."""
        files, own = (int(size * (1 << 20) / os.sysconf("SC_PAGE_SIZE")) for size in (10, mib))
        (self.folder / str(pid) / "statm").write_text(f"99999 {files + own} {files} 1 0 9 0\n")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def watch(proc: Proc, *pids: int, after_s: float = 10.0, cgroups: tuple[Path, ...] = ()) -> PageOut:
    return PageOut(after_s, lambda: pids, proc=proc.folder, cgroups=cgroups)


def test_a_kernel_is_idle_if_it_has_used_no_cpu_for_the_whole_time(proc: Proc) -> None:
    page_out = watch(proc, 7, 8)
    proc.set_cpu(7, 1.0)
    proc.set_cpu(8, 1.0)
    assert page_out.find_idle(100.0) == []
    assert page_out.find_idle(109.9) == []
    proc.set_cpu(8, 1.5)
    assert page_out.find_idle(110.0) == [7]
    assert page_out.find_idle(119.9) == [7]
    assert page_out.find_idle(120.0) == [7, 8]


def test_a_little_cpu_in_the_whole_time_is_no_work(proc: Proc) -> None:
    page_out = watch(proc, 7)
    for second in range(5):
        proc.set_cpu(7, 1.0 + second / 100)
        assert page_out.find_idle(second) == []
    assert page_out.find_idle(10.0) == [7]


def test_a_process_that_has_ended_is_forgotten(proc: Proc) -> None:
    page_out = watch(proc, 7)
    proc.set_cpu(7, 1.0)
    page_out.find_idle(0.0)
    (proc.folder / "7" / "stat").unlink()
    assert page_out.find_idle(11.0) == []
    proc.set_cpu(7, 1.0)  # another process with its number
    assert page_out.find_idle(12.0) == []


async def test_a_kernel_whose_memory_comes_back_is_paged_out_again(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short cell uses too little CPU time to count as work, but it brings a few MiB back."""
    signalled: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signalled.append(pid))
    proc.set_cpu(7, 1.0)
    proc.set_resident(7, 40.0)
    task = asyncio.create_task(watch(proc, 7, after_s=0.2).run())
    try:
        await until(lambda: signalled == [7], "paged out")
        for mib in (2.0, 2.5, 2.2):  # what an idle kernel touches
            proc.set_resident(7, mib)
            await asyncio.sleep(0.15)
        assert signalled == [7]
        proc.set_resident(7, 4.0)
        await until(lambda: signalled == [7, 7], "paged out again")
    finally:
        task.cancel()


@pytest.mark.parametrize(
    ("swap", "percent", "reason"),
    [
        ((1000, 900), 0.0, ""),
        ((1000, 900), 9.0, ""),
        ((0, 0), 0.0, "this machine has no swap"),
        ((1000, 99), 0.0, "the swap is almost full"),
        ((1000, 900), 11.0, "memory is short"),
    ],
)
def test_reasons(proc: Proc, swap: tuple[int, int], percent: float, reason: str) -> None:
    proc.set_swap(*swap)
    proc.set_pressure(percent)
    assert watch(proc).why_not() == reason
    assert watch(proc).problems() == ([f"idle kernels are not paged out: {reason}"] if reason else [])


def test_a_container_without_swap(proc: Proc, tmp_path: Path) -> None:
    (tmp_path / "memory.swap.max").write_text("0\n")
    assert watch(proc, cgroups=(tmp_path,)).why_not() == "this container may not use the swap"
    (tmp_path / "memory.swap.max").write_text("max\n")
    assert watch(proc, cgroups=(tmp_path,)).why_not() == ""


def test_a_system_that_does_not_measure_pressure(proc: Proc) -> None:
    (proc.folder / "pressure/memory").unlink()
    assert watch(proc).why_not() == ""


async def test_an_idle_kernel_gets_the_signal_once(proc: Proc, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    code = (
        f"import signal, sys; print(int(signal.sigwait([{int(SIGNAL)}]))); sys.stdout.flush(); signal.pause()"
    )
    blocked = lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])  # noqa: E731
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, preexec_fn=blocked
    )
    assert process.stdout is not None
    proc.set_swap(0, 0)
    proc.set_cpu(process.pid, 1.0)
    page_out = watch(proc, process.pid, after_s=0.05)
    running = asyncio.create_task(page_out.run())
    try:
        await until(lambda: "this machine has no swap" in caplog.text, "the log says why", 10)
        proc.set_swap(1000, 900)
        assert int(await asyncio.wait_for(process.stdout.readline(), allow_s(60))) == SIGNAL
        assert page_out.find_idle(float("inf")) == [], "it is not told again"
        assert caplog.text.count("has no swap") == 1
        proc.set_cpu(process.pid, 2.0)
        assert page_out.find_idle(0.0) == []
        assert page_out.find_idle(1.0) == [process.pid], "it has worked and is idle again"
    finally:
        running.cancel()
        process.kill()
        await process.wait()


def test_kernels_handle_the_signal_that_agents_send() -> None:
    assert zygote.SIGNAL == SIGNAL
