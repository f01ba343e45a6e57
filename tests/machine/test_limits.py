"""Limits on the memory and the CPUs of kernels, with the system's control groups and without them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kit.machine import control_groups
from kit.machine.control_groups import has_groups, lease_groups
from kit.machine.daemons import daemon_pids, kill, settle
from kit.machine.started_kernels import start_as
from roost.scheduler.client.client import connect
from roost.scheduler.errors import KernelDied
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.backends("local", why="the same agent on every backend")
MIB = 1 << 20
BUSY_S = float(os.environ.get("ROOST_BUSY_S", "15"))
TOLERANCE = float(os.environ.get("ROOST_CPU_TOLERANCE", "0.3"))
"""The tolerated error of CPU shares, as other tests use the CPUs too. A quiet machine needs only 0.15."""
FILL = "data = bytearray({0} << 20); data[::4096] = b'x' * len(data[::4096])"
"""Code that fills memory. Its parameter is the number of MiB."""
DETACHED = """
import subprocess, sys
code = {0!r} + "\\nimport time; time.sleep(600)"
command = ["sh", "-c", 'setsid "$0" -c "$1" >/dev/null 2>&1 & echo $!', sys.executable, code]
int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
"""
"""Code that starts a detached process, and has its pid as value. ipykernel would end a child of the kernel."""
BUSY = """
import time
until, before = time.monotonic() + {0}, time.process_time()
while time.monotonic() < until:
    pass
time.process_time() - before
"""
"""Code that keeps one thread busy. Its parameter is the seconds, and its value is the process's CPU time."""
BUSY_FROM = "import time\nwhile time.monotonic() < {1}: time.sleep(0.01)" + BUSY
"""The same, from a time on, so that several kernels begin together."""
READ_ONLY = 'for each in /sys/fs/cgroup/*; do mount -o remount,bind,ro "$each"; done; exec "$0" "$@"'
WITHOUT_GROUPS = """
import roost
from roost.scheduler.client.client import connect
from roost.scheduler.errors import KernelDied, RoostError

fill = "data = bytearray({0} << 20); data[::4096] = b'x' * len(data[::4096])"
sleep = "; import time; time.sleep(600)"
many = "import os\\nfor _ in range(4):\\n  if os.fork() == 0:\\n    " + fill.format(150) + sleep
with roost.start_kernel("python3", backend="local", memory="300MiB", cpus=1) as kernel:
    print(connect("local").nodes().result(60)[0]["enforcement"])
    print(kernel.execute("x = bytearray(250 << 20); len(x)").text)
    print(kernel.execute(fill.format(4000)).error)
    print(kernel.execute("1 + 1").text)
    try:
        kernel.execute(many + "\\nimport time; time.sleep(60)")
    except KernelDied as problem:
        print(problem)
try:
    roost.start_kernel("python3", backend="local", memory="300MiB", enforce="required")
except RoostError as problem:
    print(problem.user_message)
"""


needs_cgroups = pytest.mark.skipif(bool(control_groups.why_not()), reason=control_groups.why_not())


def is_there(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


@needs_cgroups
@pytest.mark.parametrize("how", ["forked", "exec"])
def test_only_the_kernel_that_needs_too_much_memory_dies(settled_runtime_dir: Path, how: str) -> None:
    fork = how == "forked"
    with (
        start_as(how=how, memory="300MiB", fork=fork) as small,
        start_as(how=how, memory="600MiB", fork=fork) as large,
    ):
        for kernel in (small, large):
            pid = kernel.execute("import os; os.getpid()").text
            entered = [
                line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if "/roost-" in line
            ]
            assert len(entered) in (1, 2), "one for memory, one for CPUs; with version 2 it is the same"
            assert "roost-others" not in "".join(entered)
        assert large.execute(FILL.format(400) + "; len(data)").text == str(400 * MIB)
        with pytest.raises(KernelDied, match=r"was killed: it used 300 MiB of its 300 MiB of memory"):
            small.execute(FILL.format(400))
        assert large.execute("len(data)").text == str(400 * MIB)


@needs_cgroups
def test_a_detached_process_counts_and_ends_with_the_lease(settled_runtime_dir: Path) -> None:
    with start_as(memory="300MiB") as kernel:
        child = int(kernel.execute(DETACHED.format("")).text)
        kernel.restart()
        assert is_there(child), "it ends with the lease, not with the process of the kernel"
    until_blocking(lambda: not is_there(child), "it ends with its lease", 120, 0.02)


@needs_cgroups
def test_a_detached_process_that_needs_too_much_memory_ends_its_kernel(settled_runtime_dir: Path) -> None:
    with start_as(memory="300MiB") as kernel:
        code = DETACHED.format(FILL.format(400)) + "\nimport time; time.sleep(60)"
        with pytest.raises(KernelDied, match="of its 300 MiB of memory"):
            kernel.execute(code)


@needs_cgroups
def test_a_detached_process_may_outlive_its_lease_if_the_operator_says_so(settled_runtime_dir: Path) -> None:
    with start_as(memory="300MiB", options={"end_detached": False}) as kernel:
        child = int(kernel.execute(DETACHED.format("")).text)
    try:
        until_blocking(lambda: not lease_groups(settled_runtime_dir), "the group is removed", 120, 0.02)
        assert is_there(child)
    finally:
        os.kill(child, 9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the control groups from roost")
def test_without_control_groups_memory_is_limited_and_watched(settled_runtime_dir: Path) -> None:
    command = ["unshare", "--mount", "sh", "-c", READ_ONLY, sys.executable, "-c", WITHOUT_GROUPS]
    output = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(120))
    lines = output.stdout.splitlines()
    print(output.stdout, output.stderr)
    why, large, excess, alive, *last = lines
    assert why.startswith("memory only: this user cannot write to /sys/fs/cgroup/")
    assert large == str(250 * MIB)
    assert excess.startswith("MemoryError")
    assert alive == "2", "the kernel lives"
    assert re.search(r"was killed: it used \d+\.?\d* MiB of its 300 MiB of memory", last[0])
    assert "cannot limit memory and CPUs (this user cannot write to" in last[1]
    assert "set enforce to auto" in last[1]


@needs_cgroups
@pytest.mark.long
def test_the_cpus_are_shared_in_proportion_to_the_promises(settled_runtime_dir: Path) -> None:
    options = {"cpus": 8}
    allowed = sorted(os.sched_getaffinity(0))[:2]
    with contextlib.ExitStack() as kernels:
        started = []
        for cpus in (1, 1, 2, 4):
            kernel = kernels.enter_context(start_as(cpus=cpus, options=options))
            kernel.execute(f"import os; os.sched_setaffinity(0, {allowed})")
            started.append(kernel)
        code = BUSY_FROM.format(BUSY_S, time.monotonic() + allow_s(2))
        with ThreadPoolExecutor() as threads:
            found = list(threads.map(lambda each: float(each.execute(code).text), started))
        until_blocking(
            lambda: float(started[0].execute(BUSY.format(2.0)).text) / 2.0 > 2 * found[0] / BUSY_S,
            "a kernel that is alone gets more",
            60,
            0.0,
        )
    total = sum(found)
    for used, promised in zip(found, (1, 1, 2, 4), strict=True):
        assert used / total == pytest.approx(promised / 8, rel=TOLERANCE), found
    print("CPU time in s:", [round(used, 2) for used in found])


@needs_cgroups
def test_a_ceiling_holds_also_for_a_kernel_that_is_alone(settled_runtime_dir: Path) -> None:
    with start_as(cpus=0.2, options={"cpu_ceiling": 1.5}) as kernel:

        def find_used() -> float | None:
            used = float(kernel.execute(BUSY.format(2.0)).text)
            return used if used > 0.4 else None  # other tests use the CPUs, too

        assert until_blocking(find_used, "the kernel uses more than its share", 60, 0.0) < 0.8


@needs_cgroups
def test_a_kernel_that_is_about_to_use_all_its_memory_is_reported_once(settled_runtime_dir: Path) -> None:
    seen: list[str] = []
    client = connect("local")
    unlisten = client.listen(lambda event: seen.append(event.detail) if event.kind == "warned" else None)
    try:
        with start_as(memory="300MiB") as kernel:
            kernel.execute(FILL.format(275))
            until_blocking(lambda: seen, "a warning is seen", 120, 0.02)
            time.sleep(2.5)
            assert len(seen) == 1
            assert re.fullmatch(r"uses 2\d\d\.?\d* MiB of its 300 MiB of memory; .*killed.*", seen[0])
    finally:
        unlisten()


@needs_cgroups
def test_an_agent_that_is_killed_leaves_its_limits_to_the_next(settled_runtime_dir: Path) -> None:
    with start_as(memory="300MiB") as kernel:
        for _ in range(3):
            (pid,) = daemon_pids(settled_runtime_dir, "agent")
            kill(pid)
            until_blocking(
                lambda: daemon_pids(settled_runtime_dir, "agent"), "there is a new agent", 120, 0.02
            )
        with pytest.raises(KernelDied, match="of its 300 MiB of memory"):
            kernel.execute(FILL.format(400))
    until_blocking(
        lambda: not lease_groups(settled_runtime_dir), "the control group of a lease is removed", 120, 0.02
    )


@needs_cgroups
def test_no_control_group_is_left(settled_runtime_dir: Path) -> None:
    with start_as(memory="300MiB"):
        assert len(lease_groups(settled_runtime_dir)) == 1
    until_blocking(
        lambda: not lease_groups(settled_runtime_dir), "the control group of a lease is removed", 120, 0.02
    )
    settle(settled_runtime_dir)
    assert not has_groups(settled_runtime_dir), "a control group of the agent is left"
