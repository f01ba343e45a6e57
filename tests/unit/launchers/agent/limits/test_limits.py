"""The choice of limits for a lease, limits that an earlier agent set, and the warning near a limit."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from roost.launchers.agent.limits import limits
from roost.launchers.agent.limits.cgroups import Cgroup, CgroupTree, NoCgroups
from roost.launchers.agent.limits.confinement import ManagedConfinement, WatchedConfinement
from roost.launchers.agent.limits.limits import Limits, NotEnforced
from roost.launchers.agent.machine.sessions import OwnSession, Session
from roost.launchers.protocol.agent_settings import Enforcement
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement.model import Request
from roost.testing.deadlines import allow_s

MIB = 1 << 20


def no_tree(name: str) -> CgroupTree:
    raise NoCgroups("there are none")


def make(
    on_near: Callable[[str, str], object] = lambda *_: None,
    *,
    pod: Cgroup | None = None,
    session: Session | None = None,
    **settings: Any,
) -> Limits:
    """Return the limits of an agent that cannot make control groups. `pod` is the group of a pod with one kernel."""
    return Limits(
        "roost-1",
        Enforcement(**settings),
        session or OwnSession(),
        cpus=1,
        own_group=pod,
        list_others=list,
        on_near=on_near,
        make_tree=no_tree,
    )


def lease(name: str = "a", **wish: Any) -> Lease:
    return Lease(id=name, kernel_id=name, owner=Owner(user="ada"), request=Request(**wish))


@pytest.fixture
def sleeper() -> Iterator[int]:
    """Yield the pid of a Python process that leads a session of its own."""
    code = "import time; print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield child.pid
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize(
    ("wish", "settings", "is_limited"),
    [
        ({}, {}, False),
        ({"cpus": 1}, {}, False),  # only a control group could limit CPUs
        ({"memory_bytes": MIB}, {}, True),
        ({"memory_bytes": MIB}, {"enforce": "never"}, False),
        ({"memory_bytes": MIB, "enforce": "auto"}, {"enforce": "never"}, True),
    ],
)
def test_only_memory_that_was_asked_for_is_limited(
    wish: dict[str, Any], settings: dict[str, Any], is_limited: bool
) -> None:
    held = make(**settings)
    assert (held.confine(lease(**wish)) is not None) is is_limited
    assert (held.get("a") is not None) is is_limited


@pytest.mark.parametrize(
    ("wish", "settings"), [({"enforce": "required"}, {"enforce": "never"}), ({}, {"enforce": "required"})]
)
def test_a_required_limit_that_is_impossible_is_refused(
    wish: dict[str, Any], settings: dict[str, Any]
) -> None:
    with pytest.raises(NotEnforced, match=r"cannot limit memory and CPUs \(there are none\)"):
        make(**settings).confine(lease(memory_bytes=MIB, **wish))
    assert make(**settings).confine(lease(**wish)) is None, "it has asked for nothing"


def test_the_node_says_how_it_limits_kernels() -> None:
    assert make().describe() == "memory only: there are none"
    assert make(enforce="never").describe() == "never"


def write_pod(folder: Path, *, most: str, used: int = 0, kills: int = 0) -> Cgroup:
    """Return a control group (version 2) with only those files that a pod's agent reads."""
    files = {
        "max": most,
        "current": used,
        "peak": used,
        "stat": "inactive_file 0",
        "events": f"oom_kill {kills}",
    }
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")
    return Cgroup(folder, folder, is_v1=False)


async def test_a_pod_is_limited_by_its_manager_and_says_so(tmp_path: Path) -> None:
    pod = write_pod(tmp_path, most=str(2 * MIB), kills=1)
    held = make(pod=pod, enforce="never")
    assert held.describe() == ""
    limits = held.confine(lease(memory_bytes=2 * MIB))
    assert isinstance(limits, ManagedConfinement)
    assert limits.open_entries() == ()
    assert limits.explain_end(-9), "it was forked, and ended, before the agent began"
    assert held.confine(lease(memory_bytes=2 * MIB)) is limits
    assert limits.explain_end(-9) == "", "the kill was that of an earlier kernel"
    write_pod(tmp_path, most=str(2 * MIB), used=MIB, kills=2)
    assert limits.explain_end(-9) == "was killed: it used 2 MiB of its 2 MiB of memory"
    assert limits.explain_end(0) == "", "a process that the kernel had started was killed"
    assert limits.peak_bytes == limits.measure() == MIB
    await held.release("a")
    assert held.get("a") is None


@pytest.mark.parametrize("most", ["max", str(MIB - 1), str(MIB + (1 << 30) + 1), "", "9223372036854771712"])
def test_a_limit_of_other_processes_too_is_not_that_of_the_kernel(tmp_path: Path, most: str) -> None:
    assert make(pod=write_pod(tmp_path, most=most)).confine(lease(memory_bytes=MIB)) is None


async def test_a_kernel_in_a_pod_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    held = make(
        lambda *said: near.put_nowait(said), pod=write_pod(tmp_path, most=str(10 * MIB), used=9 * MIB)
    )
    held.confine(lease(memory_bytes=10 * MIB))
    monkeypatch.setattr(limits, "_PAUSE_S", 0.0)
    watching = asyncio.get_running_loop().create_task(held.watch())
    said = await asyncio.wait_for(near.get(), allow_s(10))
    watching.cancel()
    assert said == ("a", "uses 9 MiB of its 10 MiB of memory; it is killed if it needs more")


async def test_a_second_kernel_in_a_lease_has_the_same_limits() -> None:
    held = make()
    first = held.confine(lease(memory_bytes=MIB))
    assert held.confine(lease(memory_bytes=MIB)) is first
    await held.release("a")
    assert held.get("a") is None


def test_the_next_agent_watches_the_kernels_of_the_last(sleeper: int) -> None:
    held = make()
    asked = lease(memory_bytes=1)
    held.adopt({"a": (asked, sleeper)})
    assert held.get("a") is None, "it has no limit"
    psutil.Process(sleeper).rlimit(psutil.RLIMIT_DATA, (1 << 30, 1 << 30))
    held.adopt({"a": (asked, sleeper), "b": (lease("b"), os.getpid()), "c": (lease("c", memory_bytes=1), 0)})
    found = held.get("a")
    assert found is not None
    assert held.get("b") is held.get("c") is None
    assert found.measure() > MIB
    assert psutil.Process(sleeper).wait(allow_s(10)) == -9
    assert found.explain_end(-9).endswith("of its 1 byte of memory")
    assert found.peak_bytes > MIB


def test_a_process_within_its_limit_lives(sleeper: int) -> None:
    held = WatchedConfinement(1 << 30, OwnSession())
    held.begin(sleeper)
    assert MIB < held.measure() < 100 * MIB
    assert held.explain_end(-9) == ""
    soft, hard = psutil.Process(sleeper).rlimit(psutil.RLIMIT_DATA)
    mapped = 256 * MIB + 8 * MIB * (os.cpu_count() or 1)
    assert soft == hard == (1 << 30) + mapped


class Measured(WatchedConfinement):
    """Limits of a kernel whose measured memory is the next figure of a list."""

    def __init__(self, *used: int) -> None:
        super().__init__(100, OwnSession())
        self.used = list(used)
        self.is_done = asyncio.Event()

    def add_up(self, pids: Collection[int]) -> int:
        if len(self.used) == 1:
            self.is_done.set()
        return self.used.pop(0)


async def test_a_kernel_near_its_limit_is_reported_once_until_it_has_used_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near: list[tuple[str, str]] = []
    held = make(lambda *said: near.append(said))
    monkeypatch.setattr(limits, "_WATCH_S", 0.0)
    kernel = held._held["a"] = Measured(89, 90, 99, 85, 95, 79, 91)
    watching = asyncio.get_running_loop().create_task(held.watch())
    await kernel.is_done.wait()
    watching.cancel()
    what = "of its 100 bytes of memory; it is killed if it needs more"
    assert near == [("a", f"uses 90 bytes {what}"), ("a", f"uses 91 bytes {what}")]


async def test_all_processes_are_listed_once_for_all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[set[int]] = []

    class Listing(OwnSession):
        def find_members(self, kernels: Collection[int]) -> Iterator[tuple[int, int]]:
            listed.append(set(kernels))
            for kernel in kernels:
                yield from ((kernel, kernel), (kernel + 1, kernel))

    class Noting(Measured):
        def add_up(self, pids: Collection[int]) -> int:
            added[self.pid] = list(pids)
            return super().add_up(pids)

    added: dict[int, list[int]] = {}
    monkeypatch.setattr(limits, "_WATCH_S", 60.0)  # no second look
    held = make(session=Listing())
    kernels = [Noting(1), Noting(1)]
    for pid, kernel in zip((10, 20), kernels, strict=True):
        kernel.pid = pid
        held._held[str(pid)] = kernel
    watching = asyncio.get_running_loop().create_task(held.watch())
    await asyncio.gather(*(kernel.is_done.wait() for kernel in kernels))
    watching.cancel()
    assert listed == [{10, 20}]
    assert added == {10: [10, 11], 20: [20, 21]}


def test_what_a_damaged_tree_cannot_do_is_watched(tmp_path: Path) -> None:
    class Broken(CgroupTree):
        version = 1

        def __init__(self, name: str) -> None:
            pass

        def open(self, cpus: float) -> None:
            raise NoCgroups("the tree is read-only")

    held = make()
    held._tree = Broken("roost-1")
    assert isinstance(held.confine(lease(memory_bytes=MIB)), WatchedConfinement)
    with pytest.raises(NotEnforced, match="the tree is read-only"):
        held.confine(lease("b", memory_bytes=MIB, enforce="required"))
