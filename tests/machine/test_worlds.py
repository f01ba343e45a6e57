"""Applications of one user in several worlds: each has its own service and agent, and sees the others' kernels."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

import roost
from kit.jupyter.front_end import front_end, texts
from kit.jupyter.restarted_servers import end, listed, serving, start
from kit.machine.control_groups import why_not
from roost.launchers.agent.limits.cgroups import find_own_group
from roost.launchers.daemon.world import find_world
from roost.provisioners.other_worlds import find_elsewhere
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.client.client import Client
from roost.scheduler.errors import LaunchError
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


def roost_command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "roost", *words], capture_output=True, text=True, timeout=allow_s(60)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def list_all() -> set[str]:
    return {kernel["id"] for kernel in json.loads(roost_command("kernels", "--json"))["kernels"]}


def own_kernels(client: Client) -> set[str]:
    return {kernel.id for kernel in client.kernels().result()}


@pytest.mark.long
def test_commands_see_the_kernels_of_all_worlds(settled_runtime_dir: Path) -> None:
    with ExitStack() as stack:
        here = stack.enter_context(application())
        there = stack.enter_context(application("unshare", "-u"))
        client = roost.connect("local")
        assert own_kernels(client) == {here["id"]}
        assert list_all() == {here["id"], there["id"]}
        assert "is in another world" in roost_command("kernels")
        assert there["id"] in roost_command("stop", there["id"])
        assert list_all() == {here["id"]}
        assert len(list(settled_runtime_dir.glob("agent.*"))) == 2
        assert len(list(settled_runtime_dir.glob("scheduler-local.*"))) == 2


async def test_a_kernel_of_another_world_is_adopted_and_starts_again_here(settled_runtime_dir: Path) -> None:
    """The kernel that was adopted goes on in its world. Its next process has the world of the new application."""
    with application("unshare", "-u", "sh", "-c", 'hostname other-world; exec "$@"', "sh") as there:
        manager = AsyncKernelManager(kernel_id=there["id"])
        provisioner = RoostProvisioner(
            kernel_id=there["id"], kernel_spec=manager.kernel_spec, parent=manager, backend="local"
        )
        info = {"backend": "local", "launch_id": there["launch_id"], "kernel_id": there["id"]}
        await provisioner.load_provisioner_info({**info, "connection_info": {}, "pid": 0})
        assert await provisioner.poll() is None
        assert provisioner.kernel is not None
        assert provisioner.kernel.pid == there["pid"]
        assert provisioner.service.is_elsewhere
        await provisioner.kill(restart=True)
        await provisioner.launch_kernel(
            [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], env=dict(os.environ)
        )
        assert not provisioner.service.is_elsewhere
        assert own_kernels(roost.connect("local")) == list_all() == {there["id"]}
        names = [Path(f"/proc/{pid}/ns/uts").readlink() for pid in ("self", provisioner.kernel.pid)]
        assert names[0] == names[1]
        await provisioner.cleanup()
        assert list_all() == set()


async def test_a_server_that_restarts_in_another_world_has_its_kernels(one_gpu: Path) -> None:
    async with serving(one_gpu, host="other-world") as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id, "client") as front:
            await front.ended(await front.run("x = 41"))
            await end(server)
    async with serving(one_gpu) as server:
        assert (await listed(server)).keys() == {kernel_id}
        assert own_kernels(roost.connect("local")) == set()
        async with front_end(server, kernel_id, "client") as front:
            assert texts(await front.ended(await front.run("print(x + 1)"))) == "42\n"
            assert (await server.api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
            assert own_kernels(roost.connect("local")) == {kernel_id}
            gone = await front.ended(await front.run("print('x' in globals())"))
            assert texts(gone) == "False\n"
        assert (await server.api("DELETE", f"kernels/{kernel_id}"))[0] == 204


@pytest.mark.long
async def test_a_kernel_in_another_network_is_stopped_but_not_reached(settled_runtime_dir: Path) -> None:
    with application("unshare", "-n") as there:
        with pytest.raises(LaunchError, match="another network namespace"):
            await find_elsewhere(roost.connect("local"), there["id"])
        assert list_all() == {there["id"]}
        roost_command("stop", there["id"])
        assert list_all() == set()


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
                assert list_all() == {here["id"], there["id"]}
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
