"""`roost down` ends what roost has started on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import roost
from kit.machine.daemons import daemon_pids, wait_gone
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s


def down(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roost", "down", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=allow_s(120))


def test_nothing_ends_while_there_are_kernels(runtime_dir: Path) -> None:
    assert "Nothing of roost's was running" in down().stdout
    with roost.start_kernel() as kernel:
        refused = down()
        assert refused.returncode == 1
        assert "There is 1 kernel, and nothing was ended: `roost down --kernels`" in refused.stderr
        assert kernel.execute("6 * 7").text == "42"
    pids = [*daemon_pids(runtime_dir, "scheduler"), *daemon_pids(runtime_dir, "agent")]
    assert len(pids) == 2
    disconnect()
    done = json.loads(down("--json").stdout)
    assert sorted([*done["services"], *done["agents"]]) == sorted(pids)
    assert str(runtime_dir) in done["stays"]
    assert all(wait_gone(pid, 1) for pid in pids)


def test_a_kernel_that_no_service_knows_counts_and_ends(settled_runtime_dir: Path) -> None:
    """The service has ended, or has not adopted the kernel yet. Its agent knows the kernel."""
    with roost.start_kernel() as kernel:
        pid = int(kernel.execute("import os; os.getpid()").text)
        (service,) = daemon_pids(settled_runtime_dir, "scheduler")
        disconnect()  # or this process would start the next one
        os.kill(service, signal.SIGKILL)
        assert wait_gone(service, 5)
        assert "There is 1 kernel, and nothing was ended" in down().stderr
        assert daemon_pids(settled_runtime_dir, "scheduler") == []
        assert "Ended: 1 kernel, 1 agent." in down("--kernels").stdout
        assert wait_gone(pid, 1)
        assert daemon_pids(settled_runtime_dir, "agent") == []
    disconnect()


def test_kernels_end_too_if_the_user_says_so(settled_runtime_dir: Path) -> None:
    with roost.start_kernel():
        pids = [*daemon_pids(settled_runtime_dir, "scheduler"), *daemon_pids(settled_runtime_dir, "agent")]
        done = down("--kernels")
    assert done.returncode == 0, done.stderr
    assert "Ended: 1 kernel, 1 service, 1 agent." in done.stdout
    assert all(wait_gone(pid, 1) for pid in pids)
    disconnect()
