"""The world of a process: real namespaces, and the control group of its job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.machine.control_groups import why_not
from roost.launchers.agent.limits.cgroups import find_own_group
from roost.launchers.daemon.private_files import FolderError
from roost.launchers.daemon.world import choose_groups, find_world, name_in_world
from roost.scheduler.client.service_folder import find_worlds, service_folder
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have one world")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make namespaces")

FIND = "from roost.launchers.daemon.world import find_world; print(find_world())"
LOGIN = "/user.slice/user-7.slice"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(60))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_child_is_in_the_same_world() -> None:
    assert run(sys.executable, "-c", FIND) == find_world()
    assert (
        run("setsid", "nice", "sh", "-c", f'cd /; ulimit -f 9; "{sys.executable}" -c "{FIND}"')
        == find_world()
    )
    assert name_in_world("agent") == f"agent.{find_world()}"
    assert name_in_world("agent", "") == "agent"


@as_root
@pytest.mark.parametrize("flags", ["-m", "-n", "-u", "-i", "-p -f", "-U -r", "-C"])
def test_each_namespace_is_another_world(flags: str) -> None:
    inside = ["unshare", *flags.split(), sys.executable, "-c", FIND]
    assert run(*inside) not in ("", find_world())


@as_root
def test_a_name_stands_in_the_place_of_the_world(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = service_folder("local", {})
    monkeypatch.setenv("ROOST_SERVICE_NAME", "gateway-1")
    assert run("unshare", "-u", sys.executable, "-c", FIND) == find_world() == "gateway-1"
    assert service_folder("local", {}) == runtime_dir / "scheduler-local.gateway-1" != own
    assert service_folder("ssh", {}) == runtime_dir / "scheduler-ssh", "a cluster has one service"
    assert find_worlds(own) == []


@pytest.mark.parametrize("name", ["a/b", "..", "a" * 41, "a b", "ä"])
def test_a_name_that_no_folder_can_have_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("ROOST_SERVICE_NAME", name)
    with pytest.raises(FolderError, match=r"ROOST_SERVICE_NAME=.* is no name: give at most 40 letters"):
        find_world()


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        (f"{LOGIN}/session-3.scope", LOGIN),
        (f"{LOGIN}/user@7.service/app.slice/vte-spawn-4f.scope", LOGIN),
        (f"{LOGIN}/user@7.service/app.slice/app-org.kde.konsole@1f.service", LOGIN),
        (f"{LOGIN}/user@7.service/app.slice/run-r9.scope/roost-1f/lease", LOGIN),
        (f"{LOGIN}/user@7.service/app.slice/jupyter.service", None),
        ("/system.slice/jupyter.service", None),
        ("/system.slice/slurmstepd.scope/job_12/step_batch/user/task_0", None),
        ("/system.slice/jupyter.service/roost-agent", "/system.slice/jupyter.service"),
        ("/system.slice/jupyter.service/roost-1f/lease", "/system.slice/jupyter.service"),
        ("/slurm/uid_7/job_12", None),
        ("/pbs_jobs.service/jobid/12.server", None),
        ("/", None),
    ],
)
def test_the_control_group_that_counts(path: str, counts: str | None) -> None:
    assert choose_groups(f"0::{path}\n") == [counts or path]


def test_with_version_1_some_hierarchies_count() -> None:
    def choose(**paths: str) -> list[str]:
        known = {"memory": "/job_1", "cpu,cpuacct": "/", "devices": "/", "pids": "/", **paths}
        lines = [f"{n}:{name}:{path}" for n, (name, path) in enumerate(known.items())]
        return choose_groups("\n".join([*lines, "0::/init.scope"]))

    usual = choose()
    assert choose(memory="/job_1/roost-1f/lease") == usual
    assert choose(devices="/other") == usual
    assert choose(memory="/job_2") != usual
    assert choose(pids="/job_2") != usual
    session = choose(memory=f"{LOGIN}/session-1.scope")
    assert choose(memory=f"{LOGIN}/session-2.scope") == session


@pytest.mark.skipif(bool(why_not()), reason=f"no control groups: {why_not()}")
def test_real_control_groups() -> None:
    def find_inside(name: str) -> str:
        group = find_own_group().child(name)
        group.make()
        try:
            entries = group.open_entries()
            code = f"import os; [os.write(each, b'0') for each in {entries}]; {FIND}"
            command = [sys.executable, "-c", code]
            done = subprocess.run(
                command, pass_fds=entries, capture_output=True, text=True, timeout=allow_s(60)
            )
            assert done.returncode == 0, done.stderr
            for each in entries:
                os.close(each)
        finally:
            assert group.remove()
        return done.stdout.strip()

    assert find_inside("roost-test") == find_world(), "kernels and daemons are in roost's own groups"
    assert find_inside("job_1") not in (find_world(), find_inside("job_2"))
