"""SSH hosts whose sshd, agent, power or network fails, and a service or an ssh process that is killed."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from kit.clusters.faults import assert_plain, read_name, say, until
from kit.clusters.ssh.faults import SshWorld, kill_process, on_host
from kit.jupyter.notebook import Notebook, held_by
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import allow_s

HOST = "n3"
"""The host that fails."""
CUT_S = 20.0
FOUND_S = 60.0
"""How long a service may take until it uses a host again that is back."""


async def outcome(world: SshWorld, opening: asyncio.Task[None], notebook: Notebook) -> str:
    """Wait until a start under a fault has succeeded, or failed with one sentence. Return that sentence."""
    try:
        await asyncio.wait_for(opening, allow_s(FOUND_S))
    except RoostError as problem:
        assert_plain(problem.user_message)
        world.opened.remove(notebook)
        say(f"the start failed: {problem.user_message}")
        return problem.user_message
    await notebook.run("mine = 42")
    await world.running(notebook)
    return ""


async def node_problem(world: SshWorld, name: str) -> str:
    """Return why the service uses no more of a host; empty if it uses the host."""
    (node,) = [node for node in await world.service().nodes() if node["id"] == name]
    return str(node["drains_because"])


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder. Copy it again if its owner has replaced a file meanwhile."""
    command = ["cp", "--archive", "--no-target-directory", source, target]
    problems = ""
    for _ in range(10):
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return
        problems = done.stderr
    raise AssertionError(problems)


def start_with_pid(world: SshWorld, pid: int) -> psutil.Process:
    """Start a process with this pid on HOST. No other process may have it."""
    script = (
        f"for i in $(seq 50); do echo {pid - 1} > /proc/sys/kernel/ns_last_pid; "
        f"sleep 1000 < /dev/null > /dev/null 2>&1 & test $! = {pid} && break; kill $!; done; echo $!"
    )
    assert world.hosts.run(HOST, "root", ["sh", "-c", script]).stdout == f"{pid}\n"
    (found,) = [each for each in world.hosts.processes(HOST, "root") if read_name(each) == "sleep"]
    return found


async def test_a_killed_sshd(ssh_world: SshWorld) -> None:
    """A kernel needs no connection of ssh."""
    notebook = await ssh_world.open(**on_host(HOST))
    before = held_by(await ssh_world.kernel_of(notebook))
    for process in ssh_world.hosts.processes(HOST, "root"):
        kill_process(process)
    await notebook.interrupt()
    await ssh_world.lives(notebook)
    assert held_by(await ssh_world.kernel_of(notebook)) == before
    other = await ssh_world.open(**on_host(HOST))
    await ssh_world.lives(notebook, other)


@pytest.mark.parametrize("side", ["ssh", "sshd"])
async def test_a_contact_that_is_killed_in_the_middle(ssh_world: SshWorld, side: str) -> None:
    kept = await ssh_world.open(**on_host("n1"))
    notebook = ssh_world.notebook(**on_host(HOST))
    opening = asyncio.create_task(notebook.open())

    def kill_contacts() -> bool:
        if side == "ssh":
            found = ssh_world.contacts(HOST)
        else:
            found = [
                each for each in ssh_world.hosts.processes(HOST, "ada") if read_name(each).startswith("sshd")
            ]
        for process in found:
            kill_process(process)
        return bool(found)

    await until(kill_contacts, "there is a contact")
    await outcome(ssh_world, opening, notebook)
    other = await ssh_world.open(**on_host(HOST))
    await ssh_world.running(kept, other)


async def test_a_killed_agent(ssh_world: SshWorld) -> None:
    notebook = await ssh_world.open(**on_host(HOST))
    before = held_by(await ssh_world.kernel_of(notebook))
    (agent,) = ssh_world.agents(HOST)
    kill_process(agent)
    killed_at = time.monotonic()
    await ssh_world.lives(notebook)
    say("found again after", killed_at)
    assert held_by(await ssh_world.kernel_of(notebook)) == before
    await notebook.interrupt()
    await ssh_world.lives(notebook)
    assert agent.pid not in [each.pid for each in ssh_world.agents(HOST)]


async def test_a_host_that_is_cut_off(ssh_world: SshWorld) -> None:
    """It is unreachable, not dead: nothing is restarted, and the kernel answers when the host is back."""
    notebook, kept = await ssh_world.open(**on_host(HOST)), await ssh_world.open(**on_host("n1"))
    process, before = ssh_world.process_of(notebook, HOST), held_by(await ssh_world.kernel_of(notebook))
    cell = notebook.client.execute("for i in range(60):\n    print(i, flush=True)\n    time.sleep(0.5)")
    ssh_world.hosts.cut(HOST)
    cut_at = time.monotonic()
    try:
        while time.monotonic() < cut_at + CUT_S:
            assert (await ssh_world.kernel_of(notebook)).state == "running"
            await asyncio.sleep(0.5)
        assert "unreachable" in await ssh_world.refusal(**on_host(HOST))
        assert await kept.value("mine") == "42"
        other = await ssh_world.open(near={"host": HOST})
        assert (await ssh_world.kernel_of(other)).node_id != HOST
    finally:
        ssh_world.hosts.mend(HOST)
    mended_at = time.monotonic()
    reply = await notebook.client._async_recv_reply(cell, timeout=allow_s(120))
    assert reply["content"]["status"] == "ok"
    await ssh_world.lives(notebook, kept, other)
    say("works again after", mended_at)
    assert held_by(await ssh_world.kernel_of(notebook)) == before
    assert process.is_running()
    await ssh_world.has_room(**on_host(HOST), within_s=FOUND_S)
    await notebook.interrupt()


@pytest.mark.parametrize("keeps_tmp", [False, True])
async def test_a_host_that_is_turned_off_and_on(ssh_world: SshWorld, tmp_path: Path, keeps_tmp: bool) -> None:
    """Another process with the old pid is never taken for the kernel, even if the agent's files are still there."""
    notebook, kept = await ssh_world.open(**on_host(HOST)), await ssh_world.open(**on_host("n1"))
    folder, saved = "tmp/roost-3001", tmp_path / "saved"
    copy_folder(ssh_world.hosts.root(HOST) / folder, saved)
    ssh_world.hosts.off(HOST)
    off_at = time.monotonic()
    await until(lambda: not ssh_world.contacts(HOST), "no contact hangs", FOUND_S)
    assert await kept.value("mine") == "42"
    ssh_world.hosts.on(HOST)
    if keeps_tmp:
        copy_folder(saved, ssh_world.hosts.root(HOST) / folder)
    impostor = start_with_pid(ssh_world, notebook.pid)
    on_at = time.monotonic()
    reason = await ssh_world.ended(notebook, FOUND_S)
    say(f"{reason!r} after {time.monotonic() - off_at:.1f} s, and after its start", on_at)
    await ssh_world.has_room(**on_host(HOST), within_s=FOUND_S)
    await ssh_world.restart(notebook)
    await ssh_world.lives(notebook, kept)
    assert impostor.is_running()
    kill_process(impostor)


@pytest.mark.long
async def test_a_kernel_on_a_host_that_stays_off_can_be_closed(ssh_world: SshWorld) -> None:
    notebook, kept = await ssh_world.open(**on_host(HOST)), await ssh_world.open(**on_host("n1"))
    ssh_world.hosts.off(HOST)
    off_at = time.monotonic()
    try:
        await asyncio.wait_for(ssh_world.close_stopped(notebook), allow_s(FOUND_S))
        say("closed after", off_at)
        await ssh_world.running(kept)
    finally:
        ssh_world.hosts.on(HOST)
    await ssh_world.has_room(**on_host(HOST), within_s=FOUND_S)
    await ssh_world.lives(kept)


async def test_a_host_that_is_turned_off_while_a_start_waits_for_it(ssh_world: SshWorld) -> None:
    await ssh_world.has_room(**on_host(HOST))
    ssh_world.hosts.off(HOST)
    try:
        began = time.monotonic()
        notebook = await ssh_world.open(near={"host": HOST})
        say("runs on another host after", began)
        assert (await ssh_world.kernel_of(notebook)).node_id != HOST
        assert "unreachable" in await node_problem(ssh_world, HOST)
    finally:
        ssh_world.hosts.on(HOST)
    await ssh_world.has_room(**on_host(HOST), within_s=FOUND_S)
    await ssh_world.lives(notebook)


async def test_a_host_key_that_changes_under_a_kernel(ssh_world: SshWorld) -> None:
    notebook = await ssh_world.open(**on_host(HOST))
    ssh_world.hosts.change_host_key(HOST)
    try:
        await ssh_world.lives(notebook)
        ssh_world.kill_service()  # the next one makes a contact
        await ssh_world.lives(notebook)
        await notebook.interrupt()
        sentence = f"the host key of {HOST} has changed"
        await ssh_world.close_stopped(notebook)
        await until(lambda: not ssh_world.agents(HOST), "the idle agent ends")
        say(await ssh_world.refusal(**on_host(HOST)))
        assert sentence in await node_problem(ssh_world, HOST)
    finally:
        ssh_world.hosts.trust()
    trusted_at = time.monotonic()
    again = await ssh_world.open(**on_host(HOST))  # a person who starts a kernel may have mended it
    say("used again after", trusted_at)
    await ssh_world.lives(again)
