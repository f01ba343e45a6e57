"""The measured use of kernels: idle kernels, the memory that counts, and pauses between measurements."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kit.machine.manual_clock import ManualClock
from roost.launchers.agent.limits import usage
from roost.launchers.agent.limits.cgroups import Cgroup
from roost.launchers.agent.limits.confinement import GroupConfinement
from roost.launchers.agent.limits.usage import RunningKernel, UsageMeter
from roost.launchers.protocol.messages import KernelUse
from roost.testing.deadlines import until_blocking

Start = Callable[[str], int]


@pytest.fixture
def run() -> Iterator[Start]:
    """Yield a function: it starts code in a new session, waits for a printed line and returns the pid."""
    children: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> int:
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child.pid

    yield start
    for child in children:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def read(meter: UsageMeter, pid: int, kernel: RunningKernel = RunningKernel(kernel_id="k")) -> KernelUse:  # noqa: B008
    (use,) = meter.read({pid: kernel})
    return use


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn caching off, so that each reading measures again."""
    monkeypatch.setattr(usage, "_MAX_AGE_S", 0.0)
    monkeypatch.setattr(usage, "_MOST_BUSY", 1e9)


SLEEP = "import time; print(flush=True); time.sleep(60)"
SPIN = "print(flush=True)\nwhile True: pass"
SHORT_CHILDREN = """
import subprocess, sys, time
print(flush=True)
while True:
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"])
"""


def await_work(pid: int) -> None:
    """Wait until a process and its ended children have used 0.3 s more of a CPU."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:4])
    # Linux reports no event for it.
    until_blocking(lambda: sum(process.cpu_times()[:4]) >= before + 0.3, "the process works", 60, 0.01)


@pytest.mark.parametrize(("code", "is_quiet"), [(SLEEP, True), (SPIN, False), (SHORT_CHILDREN, False)])
def test_a_kernel_is_quiet_if_nothing_that_it_has_started_works(
    run: Start, code: str, is_quiet: bool
) -> None:
    clock = ManualClock()
    pid, meter = run(code), UsageMeter(clock=clock.time)
    assert read(meter, pid).quiet_s == 0.0, "its earlier work is unknown"
    if not is_quiet:
        await_work(pid)
    clock.advance(10.0)
    assert read(meter, pid).quiet_s == (10.0 if is_quiet else 0.0)


def test_a_kernel_whose_gpu_works_is_not_quiet(run: Start) -> None:
    clock = ManualClock()
    pid, meter = run(SLEEP), UsageMeter(clock=clock.time)
    for kernel in (RunningKernel(kernel_id="k"), RunningKernel(kernel_id="k", is_on_busy_gpu=True)):
        use = read(meter, pid, kernel)
        clock.advance(10.0)
    assert use.quiet_s == 0.0


def test_the_gpu_memory_of_all_processes_counts(run: Start) -> None:
    pid = run("import subprocess, time; subprocess.Popen(['sleep', '60']); print(flush=True); time.sleep(60)")
    members = [pid, *(child.pid for child in psutil.Process(pid).children())]
    kernels = {pid: RunningKernel(kernel_id="k")}
    (use,) = UsageMeter().read(kernels, {members[0]: 5, members[1]: 7, 1: 1000})
    assert (use.gpu_memory_bytes, use.processes) == (12, 2)


def test_the_memory_in_a_control_group_is_that_of_the_group(run: Start, tmp_path: Path) -> None:
    (tmp_path / "memory.usage_in_bytes").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("cache 400\ntotal_inactive_file 300\n")
    held = GroupConfinement(Cgroup(tmp_path, tmp_path, is_v1=True), 0)
    assert read(UsageMeter(), run(SLEEP), RunningKernel(kernel_id="k", held=held)).memory_bytes == 700


def test_memory_that_is_shared_counts_in_part(run: Start) -> None:
    code = f"import os; data = bytearray(b'x') * (64 << 20); os.fork(); {SLEEP}"
    assert 64 << 20 < read(UsageMeter(), run(code)).memory_bytes < 96 << 20


def test_what_is_written_to_a_disk_counts(run: Start, tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-fc%T", str(tmp_path)], capture_output=True, check=True).stdout
    if kind.strip() == b"tmpfs":
        pytest.skip("the folder for temporary files is in memory")
    pid = run(
        f"file = open({str(tmp_path / 'file')!r}, 'wb'); file.write(bytes(1 << 20)); file.flush(); {SLEEP}"
    )
    assert 1 << 20 <= read(UsageMeter(), pid).written_bytes < 2 << 20


def test_a_slow_measurement_is_not_repeated_soon(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_MOST_BUSY", 1e-9)
    pid, other, meter = run(SPIN), run(SLEEP), UsageMeter()
    first = read(meter, pid)
    time.sleep(0.1)
    assert read(meter, pid) == first
    new = {pid: RunningKernel(kernel_id="k"), other: RunningKernel(kernel_id="other")}
    assert [use.processes for use in meter.read(new)] == [1, 1], "a new kernel is measured at once"
    assert meter.read(new)[0] == first
