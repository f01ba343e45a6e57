"""A kernel gets the context of its application, not that of the application that started the agent."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import roost
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="contexts are known on Linux only")

APPLICATION = """
import json, os, resource, subprocess, sys
import roost
from roost.scheduler.client.client import disconnect

given = json.loads(sys.argv[1])
for name, (soft, hard) in given.get("limits", {}).items():
    number = getattr(resource, "RLIMIT_" + name)
    resource.setrlimit(number, (soft, resource.getrlimit(number)[1] if hard is None else hard))
if "cpus" in given:
    os.sched_setaffinity(0, given["cpus"])
os.nice(given.get("nice", 0))
if given.get("groups"):
    os.setgroups(given["groups"][1:])
    os.setgid(given["groups"][0])
service = roost.connect("local")
service.warm([sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], os.environ).result()
effects = {}
for name, may_fork in (("executed", False), ("forked", True), ("standby", True)):
    with roost.start_kernel(fork=may_fork, cwd=given["cwd"]) as kernel:
        (shown,) = [each for each in service.kernels().result() if each.id == kernel.id]
        effects[name] = [shown.how, eval(kernel.execute(given["code"] + "seen", timeout_s=60).text)]
plain = [sys.executable, "-c", given["code"] + "print(seen)"]
done = subprocess.run(plain, cwd=given["cwd"], capture_output=True, text=True, check=True)
effects["plain"] = ["exec", eval(done.stdout)]
print(json.dumps(effects))
disconnect()
"""

HOWS = {"executed": "exec", "forked": "forked", "standby": "forked", "plain": "exec"}
COUNT = """
import subprocess
run = lambda *command: int(subprocess.run(command, capture_output=True).stdout)
seen = [run("nproc"), run("nice")]
"""
WRITE = """
import os
def write(size_bytes):
    try:
        with open("big", "wb", 0) as file:
            return file.write(b"x" * size_bytes)
    except OSError as problem:
        return problem.errno
seen = [write(1 << 20), write(3 << 20)]
"""
OPEN = """
import os
def open_many(count):
    files = []
    try:
        for _ in range(count):
            files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as problem:
        return problem.errno
    finally:
        for each in files:
            os.close(each)
seen = [open_many(100), open_many(300)]
"""
OWN = """
import os, subprocess
open("own", "w").close()
subprocess.run(["touch", "child"])
seen = [os.stat("own").st_gid, os.stat("child").st_gid, sorted(os.getgroups())]
"""
THREADS = """
import ctypes, numpy
path = next(line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line)
library = ctypes.CDLL(path)
names = [start + "openblas_get_num_threads" + end for start in ("scipy_", "") for end in ("64_", "")]
seen = getattr(library, next(name for name in names if hasattr(library, name)))()
"""
RECURSE = """
import sys, threading
def deep(n):
    return n and max([n], key=lambda _: deep(n - 1))
def try_deep(n):
    sys.setrecursionlimit(10**6)
    try:
        found.append(deep(n))
    except RecursionError:  # Python 3.12 and later have a limit of their own
        found.append("no deeper")
    sys.setrecursionlimit(3000)
found = []
try_deep(60_000)
thread = threading.Thread(target=try_deep, args=(60_000,))
thread.start()
thread.join()
seen = found
"""
"""Each level takes 500 bytes of the stack or more: all take more than the usual 8 MiB."""


@pytest.fixture(scope="module")
def earlier_agent(module_runtime_dir: Path) -> Iterator[Path]:
    """Start the agent from this process, whose context is the usual one."""
    roost.connect("local").nodes().result()
    yield module_runtime_dir
    disconnect()
    settle(module_runtime_dir)


def see(folder: Path, code: str, **context: Any) -> dict[str, Any]:
    """Run an application with this context. Return what `code` shows in its kernels, and in a plain child."""
    given = json.dumps({"code": code, "cwd": str(folder), **context})
    command = [sys.executable, "-c", APPLICATION, given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(120))
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert {name: how for name, (how, _) in seen.items()} == HOWS
    return {name: value for name, (_, value) in seen.items()}


def same(value: Any) -> dict[str, Any]:
    return dict.fromkeys(HOWS, value)


def test_affinity_and_niceness(earlier_agent: Path, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    seen = see(tmp_path, COUNT, cpus=[cpu], nice=3)
    assert seen == same([1, os.getpriority(os.PRIO_PROCESS, 0) + 3])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU leaves nothing to choose")
def test_libraries_count_the_cpus_of_the_application(
    settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy's library for matrices counts them when it is imported, here in the zygote."""
    pytest.importorskip("numpy")
    (tmp_path / "jupyter_roost_config.json").write_text('{"RoostLocalBackend": {"preload": ["numpy"]}}')
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    assert see(tmp_path, THREADS, cpus=[min(os.sched_getaffinity(0))]) == same(1)
    assert see(tmp_path, THREADS) == same(len(os.sched_getaffinity(0)))


def test_the_largest_file(earlier_agent: Path, tmp_path: Path) -> None:
    seen = see(tmp_path, WRITE, limits={"FSIZE": [2 << 20, None]})
    assert seen == same([1 << 20, 2 << 20])


def test_the_number_of_open_files(earlier_agent: Path, tmp_path: Path) -> None:
    seen = see(tmp_path, OPEN, limits={"NOFILE": [256, None]})
    assert seen == same([None, errno.EMFILE])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose its groups")
def test_the_group_of_new_files(earlier_agent: Path, tmp_path: Path) -> None:
    seen = see(tmp_path, OWN, groups=[12345, 777, 778])
    assert seen == same([12345, 12345, [777, 778]])


def test_the_depth_of_the_stack_and_of_a_threads_stack(earlier_agent: Path, tmp_path: Path) -> None:
    seen = see(tmp_path, RECURSE, limits={"STACK": [512 << 20, None]})
    assert seen == same(seen["plain"])
    if sys.version_info < (3, 12):
        assert seen["plain"] == [60_000, 60_000]


FIRST = """
import os, resource, roost
for name, soft in (("FSIZE", 2 << 20), ("NOFILE", 256), ("STACK", 16 << 20)):
    number = getattr(resource, "RLIMIT_" + name)
    resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
roost.connect("local").nodes().result()
"""


def test_a_usual_application_after_an_unusual_one(settled_runtime_dir: Path, tmp_path: Path) -> None:
    """Neither the first application's limits nor its processors are left in the agent."""
    subprocess.run([sys.executable, "-c", FIRST], check=True, timeout=allow_s(60))
    seen = see(tmp_path, f"{WRITE}first = seen\n{OPEN}seen = first + seen\n")
    assert seen == same([1 << 20, 3 << 20, None, None])
    (node,) = roost.connect("local").nodes().result()
    assert node["cpus"] == len(os.sched_getaffinity(0))
    assert len(list(settled_runtime_dir.glob("agent*"))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its capabilities")
def test_without_capabilities_a_raised_limit_or_priority_is_refused_with_a_remedy(
    settled_runtime_dir: Path, tmp_path: Path
) -> None:
    """A user without capabilities cannot give these to kernels of an agent with lower ones."""
    unprivileged = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    command = [*unprivileged, "nice", sys.executable, "-c", "import roost; roost.connect().nodes().result()"]
    subprocess.run(command, check=True, timeout=allow_s(60))
    start = [*unprivileged, sys.executable, "-c", "import roost; roost.start_kernel().stop()"]
    refused = subprocess.run(start, capture_output=True, text=True, timeout=allow_s(60))
    assert "may not lower it: set ROOST_SERVICE_NAME to a name for this application" in refused.stderr
    subprocess.run(start, env={**os.environ, "ROOST_SERVICE_NAME": "own"}, check=True, timeout=allow_s(60))
