"""Applications of one user in several worlds: each has its own service and agent, unless they share a name."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import roost
from kit.jupyter.front_end import front_end
from kit.jupyter.restarted_servers import end, listed, serving, start
from kit.machine.control_groups import why_not
from roost.launchers.agent.limits.cgroups import find_own_group
from roost.launchers.daemon.world import find_world
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can make namespaces"
)

APPLICATION = """
import asyncio, fcntl, json, os, socket, struct, sys
import roost

try:  # the loopback of a new network is down
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
except OSError:
    pass
with roost.start_kernel() as kernel:
    kernel.execute("x = 41", check=True)
    (shown,) = [each for each in roost.connect("local").kernels().result() if each.id == kernel.id]
    print(json.dumps({"id": kernel.id, "launch_id": shown.launch_id, "pid": shown.pid}), flush=True)
    sys.stdin.read()
"""


@contextmanager
def application(*world: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Run an application with a kernel in another world: the prefix of its command. Yield facts about the kernel."""
    command = [*world, sys.executable, "-c", APPLICATION]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(allow_s(60))


def roost_command(*words: str, world: str = "") -> str:
    named = {"ROOST_SERVICE_NAME": world} if world else {}
    done = subprocess.run(
        [sys.executable, "-m", "roost", *words],
        capture_output=True,
        text=True,
        timeout=allow_s(60),
        env={**os.environ, **named},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def list_all(world: str = "") -> set[str]:
    """Return the ids of the kernels of this world, or of another one."""
    return {kernel["id"] for kernel in json.loads(roost_command("kernels", "--json", world=world))["kernels"]}


def test_a_world_has_its_own_service_which_its_name_reaches(settled_runtime_dir: Path) -> None:
    with ExitStack() as stack:
        here = stack.enter_context(application())
        there = stack.enter_context(application("unshare", "-u"))
        assert list_all() == {here["id"]}
        (world,) = roost.connect("local").find_worlds()
        assert f"`ROOST_SERVICE_NAME={world} roost kernels` lists them" in roost_command("kernels")
        assert list_all(world) == {there["id"]}
        assert there["id"] in roost_command("stop", there["id"], world=world)
        assert list_all(world) == set()
        assert list_all() == {here["id"]}
        assert len(list(settled_runtime_dir.glob("agent.*"))) == 2
        assert len(list(settled_runtime_dir.glob("scheduler-local.*"))) == 2


def test_two_units_of_one_name_have_one_service(
    settled_runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_SERVICE_NAME", "gateway")
    with application() as here, application("unshare", "-u") as there:
        assert list_all() == {here["id"], there["id"]}
        assert [folder.name for folder in settled_runtime_dir.glob("scheduler-*")] == [
            "scheduler-local.gateway"
        ]
        assert [folder.name for folder in settled_runtime_dir.glob("agent*")] == ["agent.gateway"]


async def test_a_server_in_another_world_says_how_its_kernel_ends(one_gpu: Path) -> None:
    async with serving(one_gpu, host="other-world") as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id) as front:
            await front.ended(await front.run("1"))
        await end(server)
    async with serving(one_gpu) as server:
        assert await listed(server) == {}
        lines = [line for line in server.log if f"kernel {kernel_id} is not adopted" in line]
        assert len(lines) == 1
        found = re.search(rf"`ROOST_SERVICE_NAME=(\w+) roost stop {kernel_id}` ends it", lines[0])
        assert found is not None
        await asyncio.to_thread(roost_command, "stop", kernel_id, world=found[1])
        assert await asyncio.to_thread(list_all, found[1]) == set()


@pytest.mark.skipif(bool(why_not()), reason=f"no control groups: {why_not()}")
@pytest.mark.long
def test_the_kernel_of_a_batch_job_is_in_the_control_group_of_the_job(settled_runtime_dir: Path) -> None:
    """A job's limits hold for the kernels of the job, although an earlier application has an agent outside."""
    group = find_own_group().child("job_1")
    group.make()
    try:
        with application() as here:
            entries = group.open_entries()
            join = f"import os, sys; [os.write(each, b'0') for each in {entries}]; os.execv(sys.argv[1], sys.argv[1:])"
            with application(sys.executable, "-c", join, pass_fds=entries) as there:
                assert list_all() == {here["id"]}
                assert find_groups(there["pid"]) != find_groups(here["pid"])
                assert "/job_1" in find_groups(there["pid"])
            for each in entries:
                os.close(each)
    finally:
        assert asyncio.run(group.end())


def test_a_command_in_a_kernel_is_in_the_world_of_the_application(settled_runtime_dir: Path) -> None:
    """A kernel with a promise is in a control group of its own, or has a limit of its memory."""
    find = "from roost.launchers.daemon.world import find_world; print(find_world())"
    for limits in ({}, {"memory": "400MiB", "cpus": 0.5}):
        with roost.start_kernel(**limits) as kernel:
            run = f"subprocess.run([sys.executable, '-c', {find!r}], capture_output=True)"
            code = f"import subprocess, sys; {run}.stdout"
            assert kernel.execute(code, check=True).text == repr(f"{find_world()}\n".encode())


def find_groups(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()
