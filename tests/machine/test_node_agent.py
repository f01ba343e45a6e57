"""An agent on a node of a cluster: kernels for applications on other machines, and leases that are lost."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from kit.machine.daemons import agent_folder, kill
from kit.machine.real_agent import Session, agent_pid, agent_session, alive, end_agent
from kit.machine.tiny_kernel import TINY_ARGV, TINY_KERNEL
from roost.launchers.agent.find_or_start import find_or_start_agent
from roost.launchers.agent.launch import launch_changes as module
from roost.launchers.daemon.daemon import DaemonError
from roost.launchers.daemon.private_files import private_folder, read_json
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Connection, Manager
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, Unauthorized
from roost.placement.model.json_codec import decode, encode
from roost.testing.deadlines import allow_s, until

AT = AgentSettings(
    cpus=4,
    memory_bytes=1000,
    gpus=2,
    idle_exit_s=60,
    address="127.0.0.2",
    is_remote=True,
    gpu_visibility="manager",
)
HOME = str(Path(module.__file__).resolve().parents[4])
PRINTS = "import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]), flush=True);" + TINY_KERNEL


@pytest.fixture
async def agent(runtime_dir: Path) -> AsyncIterator[Session]:
    async with agent_session(AT) as session:
        yield session
    await end_agent(AT)
    for folder in ("kernels", "leases"):
        assert not list((agent_folder(runtime_dir) / folder).iterdir()), f"{folder} left"


@contextmanager
def daemon(address: str) -> Iterator[Manager]:
    """Run a process that stands for the manager's daemon on this node, and kill it at the end."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            started_at = start_time(process.pid)
            yield Manager(name="Ray", pid=process.pid, process_started_at=started_at, address=address)
        finally:
            process.kill()


@pytest.fixture
async def answering() -> AsyncIterator[str]:
    """Yield an address at which a manager answers."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def launch_and_read(agent: Session, name: str, **launch: Any) -> tuple[Connection, str, dict[str, str]]:
    """Launch a kernel and return its connection, its folder and its environment."""
    process = await agent.launch(name, (*TINY_ARGV[:3], PRINTS, TINY_ARGV[4]), **launch)
    cwd, env = json.loads((await agent.client.logs(name, 100_000)).splitlines()[0])
    assert process.connection is not None
    return process.connection, cwd, env


async def test_a_kernel_listens_at_its_nodes_address_and_starts_in_its_folder_or_the_home_folder(
    agent: Session, tmp_path: Path
) -> None:
    await agent.reserve("k")
    connection, cwd, _ = await launch_and_read(
        agent, "k", cwd="/no/such/folder", connection=Connection(ip="192.0.2.1")
    )
    assert (connection.ip, cwd) == ("127.0.0.2", os.path.realpath(os.path.expanduser("~")))
    assert agent.client.endpoint.startswith("tcp://127.0.0.2:")
    await agent.reserve("there")
    assert (await launch_and_read(agent, "there", cwd=str(tmp_path)))[1] == os.path.realpath(tmp_path)


async def test_a_kernel_starts_in_the_folder_that_its_request_names(agent: Session, tmp_path: Path) -> None:
    await agent.reserve("k", options={"cwd": str(tmp_path)})
    _, cwd, env = await launch_and_read(agent, "k", cwd="/")
    assert cwd == os.path.realpath(tmp_path)
    assert env["HOME"] == os.environ["HOME"], "the node's environment is there too"
    await agent.reserve("home", options={"cwd": "~"})
    assert (await launch_and_read(agent, "home", cwd="/"))[1] == os.path.realpath(os.path.expanduser("~"))
    await agent.reserve("none", options={"cwd": "~/no-such-folder"})
    missing = os.path.expanduser("~/no-such-folder")
    with pytest.raises(
        RemoteError, match=f"there is no folder {missing} on that machine: make it, or change"
    ):
        await launch_and_read(agent, "none", cwd="/")


async def test_a_kernels_environment_is_added_to_its_nodes(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OF_THE_NODE": "1", "LANG": "C", "PYTHONPATH": f"{HOME}{os.pathsep}/mine"}.items():
        monkeypatch.setenv(name, value)
    async with agent_session(AT) as agent:
        await agent.reserve("k")
        _, _, env = await launch_and_read(agent, "k", env={"LANG": "de_DE"})
        assert (env["OF_THE_NODE"], env["LANG"], env["PYTHONPATH"]) == ("1", "de_DE", "/mine")
    await end_agent(AT)


@pytest.mark.parametrize(
    ("entries", "left"), [([HOME, "/a", "", "/b"], "/a:/b"), ([HOME], None), ([f"{HOME}/./"], None)]
)
def test_kernels_do_not_get_the_folder_of_the_agents_code(
    monkeypatch: pytest.MonkeyPatch, entries: list[str], left: str | None
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entries))
    assert module.build_node_environment().get("PYTHONPATH") == left


def test_the_folder_of_the_agents_code_is_found_behind_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(HOME, f"{folder}/link")
        monkeypatch.setenv("PYTHONPATH", f"{folder}/link")
        assert "PYTHONPATH" not in module.build_node_environment()


async def test_a_kernel_sees_only_the_devices_that_its_manager_granted(agent: Session) -> None:
    await agent.reserve("two", gpus=2, device_ids=("5", "3"), is_granted=True)
    env = (await launch_and_read(agent, "two"))[2]
    assert env["CUDA_VISIBLE_DEVICES"] == "5,3"
    assert "CUDA_DEVICE_ORDER" not in env, "the manager decides the order"
    await agent.reserve("none", is_granted=True)
    assert (await launch_and_read(agent, "none"))[2]["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(("is_granted", "kind"), [(False, "conflict"), (True, "internal")])
async def test_a_deleted_folder_is_a_conflict_only_if_the_agent_itself_decides(
    agent: Session, runtime_dir: Path, is_granted: bool, kind: str
) -> None:
    """A scheduler would count the slice as free after a conflict, although the manager has granted it."""
    await agent.reserve("before")  # else the agent would leave
    lock = agent_folder(runtime_dir) / "lock"
    moved = lock.rename(lock.with_name("moved"))
    with pytest.raises(RemoteError, match="was deleted: no kernel starts here until those") as refusal:
        await agent.reserve("k", is_granted=is_granted)
    with pytest.raises(RemoteError, match="was deleted"):
        await agent.launch("before")
    moved.rename(lock)
    await agent.client.release("roost:before:1")
    assert refusal.value.kind == kind


async def test_in_a_pod_the_devices_that_the_manager_shows_stay_visible(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    in_pod = replace(AT, gpu_visibility="inherit")
    async with agent_session(in_pod) as agent:
        await agent.reserve("k", gpus=1)
        assert (await launch_and_read(agent, "k"))[2]["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    await end_agent(in_pod)


async def test_signals_that_the_starter_blocked_reach_kernels(runtime_dir: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        async with agent_session(AT) as agent:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            await agent.reserve("k")
            process = await agent.launch("k")
            assert "SigBlk:\t0000000000000000" in Path(f"/proc/{process.pid}/status").read_text()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    await end_agent(AT)


async def test_a_node_that_leaves_its_cluster_reports_lost_leases_before_they_end(
    agent: Session, answering: str
) -> None:
    with daemon(answering) as manager:
        await agent.client.manage(manager)
        processes = []
        for name in ("a", "b"):
            await agent.reserve(name, cpus=1)
            processes.append(await agent.launch(name))
        assert not (await agent.client.status()).is_draining
        kill(manager.pid)
        first = await agent.until("lost")
        assert (first.lease_id, first.reason) == ("", "Ray's last daemon here has ended")
        assert (await agent.client.status()).is_draining
        seen = [await asyncio.wait_for(agent.events.get(), allow_s(60))]
        while sum(event.kind == "released" for event in seen) < 2:
            seen.append(await asyncio.wait_for(agent.events.get(), allow_s(60)))
    lost, exited = ([event for event in seen if event.kind == kind] for kind in ("lost", "exited"))
    assert sorted(event.lease_id for event in lost) == ["roost:a:1", "roost:b:1"]
    assert {event.reason for event in lost} == {"its node has left the Ray cluster"}
    assert len(exited) == 2
    assert max(seen.index(event) for event in lost) < min(seen.index(event) for event in exited)
    assert not any(map(alive, processes))
    assert (await agent.client.holdings()).leases == ()


async def test_a_launch_is_an_answer_to_its_caller_and_an_event_to_all_others(
    agent: Session, answering: str
) -> None:
    with daemon(answering) as manager:
        await agent.client.manage(manager)
        async with agent_session(AT) as other:
            await agent.reserve("k")
            process = await agent.launch("k")
            assert (await other.until("launched")).kernel == process
        await agent.client.status()  # the events before its answer have arrived
        kinds = [agent.events.get_nowait().kind for _ in range(agent.events.qsize())]
        assert "reserved" in kinds
        assert "launched" not in kinds


async def test_the_next_agent_notices_that_the_daemon_has_ended_meanwhile(
    agent: Session, answering: str
) -> None:
    with daemon(answering) as manager:
        await agent.client.manage(manager)
        await agent.reserve("k")
        process = await agent.launch("k")
        kill(agent_pid())
        kill(manager.pid)
    assert alive(process)
    async with agent_session(AT) as following:

        async def has_none() -> bool:  # it may have released the lease before this client is there
            return not (await following.client.holdings()).leases

        await until(has_none, "the next agent releases the lease")
    assert not alive(process)


async def test_a_daemon_that_does_not_run_here_is_refused(agent: Session) -> None:
    with pytest.raises(RemoteError, match=r"no process .* of Ray runs here"):
        await agent.client.manage(Manager(name="Ray", pid=os.getpid(), process_started_at=1.0, address="a:1"))


@pytest.mark.parametrize("which", ["the daemon", "a job of the daemon"])
async def test_a_manager_that_is_a_subreaper_is_refused(runtime_dir: Path, which: str) -> None:
    set_child_subreaper(True)  # as a raylet may be: then the agent becomes its child
    try:
        async with agent_session(AT):
            pid = agent_pid()
            manager_pid = os.getpid() if which == "the daemon" else os.getppid()
            manager = Manager(
                name="Ray", pid=manager_pid, process_started_at=start_time(manager_pid), address="127.0.0.1:1"
            )
            with pytest.raises(DaemonError, match=r"Ray is set up as a subreaper.* Start Ray without that"):
                await find_or_start_agent(AT, manager=manager)
        assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0, "it leaves"
    finally:
        set_child_subreaper(False)
    assert not (agent_folder(runtime_dir) / "manager.json").exists()


def set_child_subreaper(on: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(36, int(on), 0, 0, 0) == 0, "PR_SET_CHILD_SUBREAPER of prctl(2)"


def bring_up(name: str, manager: Manager, *clients: str) -> dict[str, Any]:
    """Find or start an agent as a cluster manager's task on a node does, and return the program's answer."""
    words = [name, json.dumps(encode(AT)), json.dumps(encode(manager)), json.dumps(clients)]
    command = [sys.executable, "-m", "roost.launchers.agent.find_or_start", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(30), check=True)
    return dict(json.loads(done.stdout))


async def test_the_program_that_starts_an_agent(runtime_dir: Path, answering: str) -> None:
    """The program's answer has no secret key, because other users of the cluster may read it."""
    with daemon(answering) as manager:
        answer = await asyncio.to_thread(bring_up, "agent-ray-1", manager)
        assert await asyncio.to_thread(bring_up, "agent-ray-1", manager) == answer, "it is found again"
        known = read_json(runtime_dir / "agent-ray-1" / "manager.json")
        assert known is not None
        assert [decode(Manager, each) for each in known["managers"]] == [manager]
        assert answer.keys() == {"endpoint", "public", "devices"}
        assert len(answer["devices"]) == AT.gpus
        public, secret = (key.decode() for key in zmq.curve_keypair())
        keys = ClientKeys(server=answer["public"], public=public, secret=secret)
        client = AgentClient(answer["endpoint"], keys)
        with pytest.raises(Unauthorized):
            await client.connect()
        await asyncio.to_thread(bring_up, "agent-ray-1", manager, public)
        client = AgentClient(answer["endpoint"], keys)
        await client.connect()
        assert (await client.status()).cpus == AT.cpus
        kill(manager.pid)
        answer = await asyncio.to_thread(bring_up, "agent-ray-1", manager)
        assert answer == {"problem": f"no process {manager.pid} of Ray runs here"}
        await client.leave()
        await client.close()


async def test_an_agent_removes_what_a_killed_zygote_has_left(runtime_dir: Path) -> None:
    left = private_folder(private_folder(agent_folder(runtime_dir)) / "rehearsal-1")
    (left / "kernel.json").write_text("with a key")
    async with agent_session() as agent:
        assert (await agent.client.holdings()).leases == ()
        assert not left.exists()
    await end_agent()
