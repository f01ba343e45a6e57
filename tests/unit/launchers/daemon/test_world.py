"""The world of a process: real namespaces, limits and users, and control groups as folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kit.machine.control_groups import why_not
from roost.launchers.agent.limits.cgroups import find_own_group
from roost.launchers.daemon.world import choose_groups, find_world, name_in_world
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have one world")
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make namespaces and become another user"
)

FIND = "from roost.launchers.daemon.world import find_world; print(find_world())"
LOGIN = "/user.slice/user-7.slice"
OTHER = 65534
AS_OTHER_USER = """
import json, os, resource
from roost.launchers.daemon.world import find_world
os.setgroups([OTHER, 7])
os.setgid(OTHER)
os.setuid(OTHER)
found = {"usual": find_world()}
cpus = os.sched_getaffinity(0)

def note(name):
    found[name] = find_world()

os.sched_setaffinity(0, {min(cpus)})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
os.umask(0o77)
note("what can be set later")
resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))
note("the limit that agents set")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 30))
note("a hard limit")
os.nice(3)
note("a higher niceness")
print(json.dumps(found))
""".replace("OTHER", str(OTHER))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(60))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_child_is_in_the_same_world() -> None:
    assert run(sys.executable, "-c", FIND) == find_world()
    assert run("setsid", "sh", "-c", f'cd /; "{sys.executable}" -c "{FIND}"') == find_world()
    assert name_in_world("agent") == f"agent.{find_world()}"
    assert name_in_world("agent", "") == "agent"


@as_root
@pytest.mark.parametrize("flags", ["-m", "-n", "-u", "-i", "-p -f", "-U -r", "-C"])
def test_each_namespace_is_another_world(flags: str) -> None:
    inside = ["unshare", *flags.split(), sys.executable, "-c", FIND]
    assert run(*inside) not in ("", find_world())


@as_root
def test_security_that_a_child_cannot_give_up() -> None:
    assert run("setpriv", "--no-new-privs", sys.executable, "-c", FIND) != find_world()
    assert run("setpriv", "--bounding-set", "-chown", sys.executable, "-c", FIND) != find_world()


@as_root
def test_limits_niceness_and_groups_are_of_the_world_of_an_unprivileged_user() -> None:
    found = json.loads(run(sys.executable, "-c", AS_OTHER_USER))
    same = [name for name, world in found.items() if world == found["usual"]]
    assert same == ["usual", "what can be set later", "the limit that agents set"]
    assert found["a hard limit"] != found["a higher niceness"]
    other_group = AS_OTHER_USER.replace(", 7]", ", 8]")
    assert json.loads(run(sys.executable, "-c", other_group))["usual"] != found["usual"]


@as_root
def test_groups_are_not_of_the_world_of_a_user_who_can_set_them() -> None:
    command = ["setpriv", "--groups", "7", "--regid", "8", sys.executable, "-c", FIND]
    assert run(*command) == find_world()


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
def test_the_control_group_that_counts(tmp_path: Path, path: str, counts: str | None) -> None:
    assert choose_groups(f"0::{path}\n", tmp_path) == [counts or path]


@pytest.mark.parametrize(
    ("limits", "is_limited"),
    [
        ({}, False),
        ({"memory.max": "max", "cpu.max": "max 100000", "cpuset.cpus": "", "pids.max": "900"}, False),
        ({"memory.max": "1000000"}, True),
        ({"memory.high": "1000000"}, True),
        ({"cpu.max": "50000 100000"}, True),
        ({"cpuset.cpus": "0"}, True),
    ],
)
def test_a_login_with_a_limit_of_its_own_counts(
    tmp_path: Path, limits: Mapping[str, str], is_limited: bool
) -> None:
    path = f"{LOGIN}/user@7.service/app.slice/run-r9.scope"
    folder = tmp_path / path[1:]
    folder.mkdir(parents=True)
    for name, content in limits.items():
        (folder / name).write_text(f"{content}\n")
    below = f"0::{path}/roost-1f/lease\n"
    assert choose_groups(below, tmp_path) == [path if is_limited else LOGIN]


def test_with_version_1_some_hierarchies_count(tmp_path: Path) -> None:
    def choose(**paths: str) -> list[str]:
        known = {"memory": "/job_1", "cpu,cpuacct": "/", "devices": "/", "pids": "/", **paths}
        lines = [f"{n}:{name}:{path}" for n, (name, path) in enumerate(known.items())]
        return choose_groups("\n".join([*lines, "0::/init.scope"]), tmp_path)

    usual = choose()
    assert choose(memory="/job_1/roost-1f/lease") == usual
    assert choose(devices="/other") == usual
    assert choose(memory="/job_2") != usual
    assert choose(pids="/job_2") != usual
    session = choose(memory=f"{LOGIN}/session-1.scope")
    assert choose(memory=f"{LOGIN}/session-2.scope") == session
    folder = tmp_path / "memory" / LOGIN[1:] / "session-2.scope"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("1000000\n")
    assert choose(memory=f"{LOGIN}/session-2.scope") != session


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
