"""Control groups as trees of files: the text of each file, and the reasons why there are no groups."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.launchers.agent.limits import cgroups
from roost.launchers.agent.limits.cgroups import Cgroup, CgroupTree, NoCgroups

STRANGER = 1
"""The pid of a process that is not a child of the test's process."""
V1_MEMORY = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes")
V1_CPU = ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us")
V2 = ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.weight", "cpu.max", "cgroup.subtree_control")


@pytest.fixture(autouse=True)
def _files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every newly made folder the files of a control group, as Linux does."""
    plain_mkdir, plain_rmdir = Path.mkdir, Path.rmdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        plain_mkdir(self, mode, parents, exist_ok)
        for name in ("cgroup.procs", "tasks", *V1_MEMORY, *V1_CPU, *V2):
            if not (self / name).exists():
                (self / name).write_text("")

    def rmdir(self: Path) -> None:
        if (self / "cgroup.procs").exists() and (self / "cgroup.procs").read_text():
            raise OSError(16, "busy")
        for each in self.iterdir() if self.exists() else ():
            if each.is_file():
                each.unlink()
        plain_rmdir(self)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)


def make_v1(folder: Path) -> CgroupTree:
    for controller in ("memory", "cpu"):
        (folder / controller).mkdir()
        (folder / controller / "user").mkdir()
    (folder / "own").write_text("4:memory:/user\n2:cpu,cpuacct:/user\n0::/\n")
    return CgroupTree("roost-1", own=folder / "own", root=folder)


def make_v2(folder: Path, *, processes: str = "", controllers: str = "cpuset cpu io memory") -> CgroupTree:
    (folder / "scope").mkdir()
    (folder / "scope" / "cgroup.controllers").write_text(controllers)
    (folder / "scope" / "cgroup.procs").write_text(processes)
    (folder / "own").write_text("0::/scope\n")
    return CgroupTree("roost-1", own=folder / "own", root=folder)


def read(folder: Path, *names: str) -> list[str]:
    return [(folder / name).read_text() for name in names]


def test_version_1_has_a_folder_per_controller(tmp_path: Path) -> None:
    tree = make_v1(tmp_path)
    tree.open(8)
    group = tree.group.child("lease")
    group.make()
    group.weigh(0.5, 2.0)
    group.limit_memory(1 << 30)
    memory, cpu = (tmp_path / each / "user" / "roost-1" for each in ("memory", "cpu"))
    assert read(cpu, "cpu.shares") == ["8192"]
    assert read(cpu / "roost-others", "cpu.shares") == ["1024"]
    assert read(cpu / "lease", *V1_CPU) == ["512", "200000", "100000"]
    assert read(memory / "lease", *V1_MEMORY) == ["1073741824", "1073741824", ""]
    assert tree.lease_names() == {"lease"}
    assert tree.version == 1


def test_version_2_has_one_folder_and_passes_its_controllers_on(tmp_path: Path) -> None:
    tree = make_v2(tmp_path, processes=f"{os.getpid()}\n")
    tree.open(8)
    group = tree.group.child("lease")
    group.make()
    group.weigh(0.5, 2.0)
    group.limit_memory(1 << 30)
    scope = tmp_path / "scope"
    assert read(scope, "cgroup.subtree_control") == ["+memory +cpu"]
    assert read(scope / "roost-agent", "cgroup.procs") == [str(os.getpid())]
    assert read(scope / "roost-1", "cgroup.subtree_control", "cpu.weight") == ["+memory +cpu", "800"]
    assert read(scope / "roost-1" / "roost-others", "cpu.weight") == ["100"]
    assert read(scope / "roost-1" / "lease", *V2) == ["1073741824", "0", "1", "50", "200000 100000", ""]
    assert tree.version == 2


def test_the_next_agent_finds_the_groups_of_an_earlier_one_in_version_2(tmp_path: Path) -> None:
    tree = make_v2(tmp_path)
    tree.open(8)
    tree.group.child("lease").make()
    (tmp_path / "own").write_text("0::/scope/roost-agent\n")
    again = CgroupTree("roost-1", own=tmp_path / "own", root=tmp_path)
    assert again.is_open
    assert again.lease_names() == {"lease"}


def test_other_processes_in_a_group_of_version_2_must_not_be_moved(tmp_path: Path) -> None:
    with pytest.raises(NoCgroups, match="other processes are in the agent's control group"):
        make_v2(tmp_path, processes=f"{os.getpid()}\n{STRANGER}\n")


def test_a_delegated_group_of_version_2_belongs_to_the_user_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1" if name == "user.delegate" else b"0")
    make_v2(tmp_path, processes=f"{os.getpid()}\n{STRANGER}\n").open(1)
    assert read(tmp_path / "scope", "cgroup.subtree_control") == ["+memory +cpu"]


@pytest.mark.parametrize("controllers", ["", "cpu io", "memory"])
def test_a_group_without_the_controllers_is_of_no_use(tmp_path: Path, controllers: str) -> None:
    with pytest.raises(NoCgroups, match="no control of memory and CPUs"):
        make_v2(tmp_path, controllers=controllers)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_tree_of_others_is_of_no_use(tmp_path: Path) -> None:
    make_v1(tmp_path)
    (tmp_path / "cpu" / "user").chmod(0o500)
    with pytest.raises(NoCgroups, match="cannot write to"):
        CgroupTree("roost-1", own=tmp_path / "own", root=tmp_path)


def test_a_path_that_is_not_there_is_the_root_of_a_container(tmp_path: Path) -> None:
    make_v1(tmp_path)
    (tmp_path / "own").write_text("4:memory:/docker/7\n2:cpu:/docker/7\n")
    tree = CgroupTree("roost-1", own=tmp_path / "own", root=tmp_path)
    tree.open(1)
    assert (tmp_path / "memory" / "roost-1").is_dir()


@pytest.mark.parametrize(
    ("most_cpus", "quota"), [(1e-6, "1000"), (1e300, f"{2**44 - 1}"), (float("inf"), f"{2**44 - 1}")]
)
def test_quotas_stay_within_the_bounds_of_the_system(tmp_path: Path, most_cpus: float, quota: str) -> None:
    for is_v1 in (True, False):
        group = Cgroup(tmp_path / f"m{is_v1}", tmp_path / f"{'c' if is_v1 else 'm'}{is_v1}", is_v1=is_v1)
        group.make()
        group.weigh(1.0, most_cpus)
    assert read(tmp_path / "cTrue", "cpu.cfs_quota_us") == [quota]
    assert read(tmp_path / "mFalse", "cpu.max") == [f"{quota} 100000"]


@pytest.mark.parametrize(("cpus", "shares", "weight"), [(0.0001, "2", "1"), (1e6, "262144", "10000")])
def test_weights_stay_within_the_bounds_of_the_system(
    tmp_path: Path, cpus: float, shares: str, weight: str
) -> None:
    for is_v1 in (True, False):
        group = Cgroup(tmp_path / f"m{is_v1}", tmp_path / f"{'c' if is_v1 else 'm'}{is_v1}", is_v1=is_v1)
        group.make()
        group.weigh(cpus)
    assert read(tmp_path / "cTrue", "cpu.shares", "cpu.cfs_quota_us") == [shares, ""]
    assert read(tmp_path / "mFalse", "cpu.weight", "cpu.max") == [weight, ""]


@pytest.mark.parametrize(("is_v1", "file"), [(True, "memory.oom_control"), (False, "memory.events")])
def test_the_kills_for_want_of_memory_are_counted(tmp_path: Path, is_v1: bool, file: str) -> None:
    group = Cgroup(tmp_path / "memory", tmp_path / "cpu", is_v1=is_v1)
    assert group.kills == 0
    group.make()
    (tmp_path / "memory" / file).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\noom 4\n")
    assert group.kills == 3


async def test_a_group_ends_with_all_its_processes_and_groups(tmp_path: Path) -> None:
    tree = make_v1(tmp_path)
    tree.open(1)
    lease = tree.group.child("lease")
    lease.make()
    procs = tmp_path / "memory" / "user" / "roost-1" / "lease" / "cgroup.procs"
    procs.write_text(f"{STRANGER}\n")
    killed = []

    def kill(pid: int, signum: int) -> None:
        killed.append((pid, signum))
        procs.write_text("")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroups.os, "kill", kill)
        assert await tree.group.end()
    assert killed == [(STRANGER, 9)]
    assert not (tmp_path / "cpu" / "user" / "roost-1").exists()


async def test_a_group_whose_process_does_not_die_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Cgroup(tmp_path / "memory", tmp_path / "cpu", is_v1=True)
    group.make()
    (tmp_path / "memory" / "cgroup.procs").write_text("999999999\n")
    monkeypatch.setattr(cgroups, "_GONE_S", 0.05)
    assert not await group.end()


def test_open_entries_are_closed_if_one_is_missing(
    tmp_path: Path, count_descriptors: Callable[[], int]
) -> None:
    group = Cgroup(tmp_path / "memory", tmp_path / "cpu", is_v1=True)
    (tmp_path / "memory").mkdir()
    before = count_descriptors()
    with pytest.raises(FileNotFoundError):
        group.open_entries()
    assert count_descriptors() == before


@pytest.fixture
def count_descriptors() -> Callable[[], int]:
    return lambda: len(os.listdir("/proc/self/fd"))
