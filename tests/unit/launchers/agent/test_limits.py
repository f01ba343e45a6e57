"""The choice of limits for a lease, the limits that an earlier agent has set, and the warning before the end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from roost.launchers.agent import limits
from roost.launchers.agent.cgroups import CgroupTree, NoCgroups
from roost.launchers.agent.confinement import WatchedConfinement
from roost.launchers.agent.limits import Limits, NotEnforced
from roost.launchers.agent.sessions import OwnSession
from roost.launchers.agent.settings import Enforcement
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement.model import Request

MIB = 1 << 20


def no_tree(name: str) -> CgroupTree:
    raise NoCgroups("there are none")


def make(
    near: list[tuple[str, str]] | None = None, *, is_per_kernel: bool = False, **settings: Any
) -> Limits:
    near = [] if near is None else near
    return Limits(
        "roost-1",
        Enforcement(**settings),
        OwnSession(),
        cpus=1,
        is_per_kernel=is_per_kernel,
        pages_out=False,
        list_others=list,
        on_near=lambda *said: near.append(said),
        make_tree=no_tree,
    )


def lease(name: str = "a", **wish: Any) -> Lease:
    return Lease(id=name, kernel_id=name, owner=Owner(user="ada"), request=Request(**wish))


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a Python process that leads a session of its own."""
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
    assert make(is_per_kernel=True).describe() == ""


def test_a_pod_leaves_its_limits_to_the_manager() -> None:
    assert make(is_per_kernel=True, enforce="required").confine(lease(memory_bytes=MIB)) is None


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
    assert held.get("a") is None, "an earlier version has not limited it"
    psutil.Process(sleeper).rlimit(psutil.RLIMIT_DATA, (1 << 30, 1 << 30))
    held.adopt({"a": (asked, sleeper), "b": (lease("b"), os.getpid()), "c": (lease("c", memory_bytes=1), 0)})
    found = held.get("a")
    assert found is not None
    assert held.get("b") is held.get("c") is None
    assert found.measure() > MIB
    assert psutil.Process(sleeper).wait(10) == -9
    assert found.explain_end(-9).endswith("of its 1 bytes of memory")
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
    """Limits of a kernel whose use is a list of figures."""

    def __init__(self, *used: int) -> None:
        super().__init__(100, OwnSession())
        self.used = list(used)
        self.is_done = asyncio.Event()

    def measure(self) -> int:
        if len(self.used) == 1:
            self.is_done.set()
        return self.used.pop(0)


async def test_a_kernel_near_its_limit_is_reported_once_until_it_has_used_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near: list[tuple[str, str]] = []
    held = make(near)
    monkeypatch.setattr(limits, "_WATCH_S", 0.0)
    kernel = held._held["a"] = Measured(89, 90, 99, 85, 95, 79, 91)
    watching = asyncio.get_running_loop().create_task(held.watch())
    await kernel.is_done.wait()
    watching.cancel()
    what = "of its 100 bytes of memory; it is killed if it needs more"
    assert near == [("a", f"uses 90 bytes {what}"), ("a", f"uses 91 bytes {what}")]


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
