"""The real agent, with kernels that only open their port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kit.machine.daemons import agent_folder, wait_gone
from kit.machine.live_folders import walk
from kit.machine.real_agent import Session, agent_pid, agent_session, alive, end_agent
from kit.machine.tiny_kernel import TINY_ARGV as ARGV
from kit.machine.tiny_kernel import TINY_KERNEL
from roost.launchers.agent.launch import kernels, start
from roost.launchers.daemon.private_files import read_json, shorten
from roost.launchers.daemon.process import is_running, start_time
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Connection, Launch, Reserve
from roost.launchers.protocol.rpc import RemoteError
from roost.testing.deadlines import allow_s, until


@pytest.fixture
async def agent(runtime_dir: Path) -> AsyncIterator[Session]:
    async with agent_session() as session:
        yield session
    await end_agent()
    folder = agent_folder(runtime_dir)
    assert not list((folder / "kernels").iterdir()), "files of kernels left"
    assert not list((folder / "leases").iterdir()), "leases left"


async def test_a_kernel_from_lease_to_release(agent: Session, runtime_dir: Path) -> None:
    lease_id = await agent.reserve("k", gpus=0.5, cpus=1)
    process = await agent.launch("k", launch_id="one")
    assert process.how == "exec"
    assert alive(process)
    assert os.getpgid(process.pid) == process.pid
    assert await agent.launch("k", launch_id="one") == process, "a repeated launch answers the same"
    with pytest.raises(RemoteError, match="still runs"):
        await agent.launch("k", launch_id="two")
    assert b"CUDA_VISIBLE_DEVICES=0\0" in Path(f"/proc/{process.pid}/environ").read_bytes()
    status = await agent.client.status()
    assert (status.kernels, status.cpus_promised, status.gpus_promised) == (1, 1, 0.5)
    assert await agent.client.logs("k", 100) == "up\n"
    for path in walk(agent_folder(runtime_dir)):
        with suppress(FileNotFoundError):  # removed meanwhile
            assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    await agent.client.release(lease_id)
    assert not alive(process)
    await agent.client.release(lease_id)
    assert (await agent.until("released")).lease_id == lease_id


async def test_signals_exits_and_restart_in_the_same_lease(agent: Session) -> None:
    await agent.reserve("k", gpus=1)
    first = await agent.launch("k")
    assert await agent.client.signal("k", signal.SIGKILL)
    event = await agent.until("exited")
    assert event.kernel is not None
    assert (event.kernel.exit_code, event.kernel.log_tail) == (-9, "up\n")
    assert "SIGKILL" in event.kernel.reason
    assert not await agent.client.signal("k", signal.SIGINT)
    second = await agent.launch("k", connection=first.connection)
    assert second.connection == first.connection, "ports and key stay"
    with pytest.raises(RemoteError, match="no signal"):
        await agent.client.signal("k", 4000)
    stopped = await agent.client.stop("k", 5)
    assert stopped.exit_code == -15
    with pytest.raises(RemoteError) as failure:
        await agent.client.stop("nobody", 1)
    assert failure.value.kind == "unknown_kernel"


@pytest.mark.parametrize(
    ("argv", "kind", "words"),
    [
        (("no-such-kernel",), "bad_command", "'no-such-kernel' was not found.*install it there"),
        ((), "bad_command", "argv is empty"),
        (
            (sys.executable, "-c", "print('last words'); raise SystemExit(3)"),
            "kernel_died",
            "code 3.*last words",
        ),
        ((sys.executable, "-S", "-c", "import signal; signal.pause()"), "launch_timeout", "within 0.5 s"),
    ],
)
async def test_starts_that_fail(agent: Session, argv: tuple[str, ...], kind: str, words: str) -> None:
    await agent.reserve("k", gpus=1)
    with pytest.raises(RemoteError, match=words) as failure:
        await agent.launch("k", argv, launch_id="x", deadline_s=0.5 if kind == "launch_timeout" else 20)
    assert failure.value.kind == kind
    with pytest.raises(RemoteError, match=words):
        await agent.launch("k", argv, launch_id="x")
    holdings = await agent.client.holdings()
    assert holdings.kernels == ()
    await agent.launch("k", launch_id="y")  # the lease is still good


async def test_launches_without_a_lease_or_a_folder_are_refused(agent: Session) -> None:
    with pytest.raises(RemoteError) as failure:
        await agent.launch("nobody")
    assert failure.value.kind == "no_lease"
    await agent.reserve("k")
    with pytest.raises(RemoteError, match="working directory /nowhere does not exist"):
        await agent.launch("k", cwd="/nowhere")


async def test_the_next_agent_adopts_the_kernels_of_a_killed_agent(agent: Session) -> None:
    await agent.reserve("busy", gpus=1)
    process = await agent.launch("busy")
    await agent.reserve("starting")
    slow = asyncio.create_task(
        agent.launch("starting", (sys.executable, "-c", "import signal; signal.pause()"), launch_id="s")
    )
    unfinished = await _wait_for_pid("starting")
    reader = await asyncio.create_subprocess_exec(
        "tail", "-f", _folder("starting") / "log", stdout=subprocess.DEVNULL
    )
    os.kill(agent_pid(), signal.SIGKILL)
    with pytest.raises(Exception, match="lost"):
        await slow
    assert alive(process)
    async with agent_session() as again:
        holdings = await again.client.holdings()
        assert [kernel.pid for kernel in holdings.kernels] == [process.pid]
        assert len(holdings.leases) == 2
        await _until_group_ends(unfinished)  # a start that was not finished is ended
        assert reader.returncode is None, "a reader of its log is not"
        reader.kill()
        await reader.wait()
        with pytest.raises(RemoteError):
            await again.reserve("other", gpus=2)
        assert await again.launch("busy", launch_id=process.launch_id) == holdings.kernels[0]
        assert await again.client.signal("busy", signal.SIGTERM)
        event = await again.until("exited")
        assert event.kernel is not None
        assert event.kernel.exit_code is None
        assert event.kernel.reason == "the kernel was stopped"
        relaunched = await again.launch("busy", connection=process.connection)
        assert relaunched.connection == process.connection
        assert relaunched.pid != process.pid


async def test_a_kernel_that_its_agent_had_no_time_to_note_is_ended(agent: Session) -> None:
    """An agent can be killed between the beginning of a kernel's process and its note of it."""
    await agent.reserve("starting")
    slow = asyncio.create_task(
        agent.launch("starting", (sys.executable, "-c", "import signal; signal.pause()"))
    )
    unfinished = await _wait_for_pid("starting")
    os.kill(agent_pid(), signal.SIGKILL)
    with pytest.raises(Exception, match="lost"):
        await slow
    (_folder("starting") / "starting.json").unlink()
    assert is_running(unfinished, start_time(unfinished))
    async with agent_session() as again:
        assert (await again.client.holdings()).kernels == ()
        await _until_group_ends(unfinished)


def _folder(name: str) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return agent_folder(Path(os.environ["ROOST_RUNTIME_DIR"])) / "kernels" / digest


async def _wait_for_pid(name: str) -> int:
    """Return the pid of a kernel that has not opened its port yet."""
    found = await until(lambda: read_json(_folder(name) / "starting.json"), "a kernel is started")
    return int(found["pid"])


async def test_a_kernel_with_an_unreadable_record_is_ended(agent: Session) -> None:
    """The next agent could not reach such a kernel. A record with unknown extra fields counts as readable."""
    await agent.reserve("newer")
    await agent.reserve("broken")
    newer, broken = await agent.launch("newer"), await agent.launch("broken")
    record = _folder("newer") / "record.json"
    record.write_text(json.dumps({**read_json(record), "from_a_newer_agent": {"a": 1}}))
    (_folder("broken") / "record.json").write_text("{}")
    os.kill(agent_pid(), signal.SIGKILL)
    async with agent_session() as again:
        assert [kernel.kernel_id for kernel in (await again.client.holdings()).kernels] == ["newer"]
        assert alive(newer)
        await _until_group_ends(broken.pid)
        assert not _folder("broken").exists()


async def test_the_next_agent_kills_a_kernel_without_a_lease(agent: Session, runtime_dir: Path) -> None:
    await agent.reserve("k")
    process = await agent.launch("k")
    os.kill(agent_pid(), signal.SIGKILL)
    for lease in (agent_folder(runtime_dir) / "leases").iterdir():
        lease.unlink()
    async with agent_session() as again:
        assert (await again.client.holdings()).kernels == ()
        assert not _folder("k").exists()
        await _until_group_ends(process.pid)


async def test_the_group_of_an_adopted_kernel_ends_with_it(agent: Session) -> None:
    await agent.reserve("k")
    parent = "import subprocess; subprocess.Popen(['sleep', '60']);" + TINY_KERNEL
    process = await agent.launch("k", (*ARGV[:3], parent, ARGV[4]))
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "500"
    os.kill(agent_pid(), signal.SIGKILL)
    async with agent_session() as again:
        os.kill(process.pid, signal.SIGKILL)
        await again.until("exited")
        await _until_group_ends(process.pid)


async def _until_group_ends(group: int) -> None:
    """Wait until no process of this process group runs. A zombie does not count."""

    def has_ended() -> bool:
        members = [process for process in psutil.process_iter(["status"]) if _group_of(process.pid) == group]
        return all(process.info["status"] == psutil.STATUS_ZOMBIE for process in members)

    await until(has_ended, "the processes of the group end", 30)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


async def test_the_end_of_a_lease_leaves_the_kernel_of_another_lease_alone(agent: Session) -> None:
    first = await agent.reserve("k", linger_s=0.2)
    (lease,) = (await agent.client.holdings()).leases
    await agent.client.reserve(Reserve(lease=replace(lease, id="roost:k:2")))
    process = await agent.launch("k", lease_id="roost:k:2")
    with pytest.raises(RemoteError, match="still runs"):
        await agent.launch("k", lease_id=first)
    assert (await agent.until("released")).lease_id == first, "no kernel was started in it"
    await agent.client.release(first)
    assert alive(process)
    await agent.client.release("roost:k:2")
    assert not alive(process)


async def test_the_use_of_kernels(agent: Session) -> None:
    await agent.reserve("k")
    await agent.reserve("ended")
    parent = "import subprocess; subprocess.Popen(['sleep', '60']);" + TINY_KERNEL
    process = await agent.launch("k", (*ARGV[:3], parent, ARGV[4]))
    await agent.launch("ended")
    await agent.client.stop("ended", 1)
    (stats,) = await agent.client.stats()
    assert (stats.kernel_id, stats.processes) == ("k", 2)
    whole = psutil.Process(process.pid)
    rss_bytes = sum(each.memory_info().rss for each in (whole, *whole.children()))
    assert 1 << 20 < stats.memory_bytes < rss_bytes, "of shared pages, only a part counts"
    assert stats.cpu_s >= 0
    assert 0 <= stats.cpu_percent < 100 * (os.cpu_count() or 1)

    async def measure() -> bool:
        began = time.monotonic()
        ((stats,), (again,)) = await agent.client.stats(), await agent.client.stats()
        if time.monotonic() - began >= 0.5:
            return False
        assert again.cpu_percent == stats.cpu_percent, "measured at most once a second"
        assert again.idle_s > stats.idle_s > 0
        return True

    await until(measure, "two readings take less than 0.5 s", 30)


async def test_the_status_lists_the_warm_interpreters_and_is_reported_when_it_changes(agent: Session) -> None:
    first = (await agent.until("status")).node  # at once, for a new subscriber
    assert first is not None
    assert first.warm == (await agent.client.status()).warm == ()
    argv = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    await agent.client.warm(argv, dict(os.environ))
    assert (await agent.client.status()).warm == (sys.executable,)
    while (await agent.until("status")).node.warm != (sys.executable,):  # type: ignore[union-attr]
        pass


async def test_a_kernel_that_does_not_die_is_reported(agent: Session) -> None:
    await agent.reserve("k")
    process = await agent.launch("k")
    with pytest.raises(RemoteError, match=r"does not die.*its lease stays"):
        await kernels.wait_for_end(process, asyncio.Event(), 0.05)


def test_an_executed_kernel_sees_the_sign_of_a_notebook_but_no_process_to_watch(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import os, sys; print(*sys.argv[1:], os.environ['JPY_PARENT_PID'])")
    argv = (sys.executable, str(tmp_path / "program.py"), "-f", "{connection_file}")
    launch = Launch(
        launch_id="1", lease_id="l", kernel_id="k", argv=argv, env={}, cwd="/", connection=Connection(), deadline_s=1
    )  # fmt: skip
    with open(tmp_path / "log", "wb") as log:
        pid = start.spawn_kernel(launch, Path("/c.json"), log.fileno())
    os.waitpid(pid, 0)
    assert (tmp_path / "log").read_text() == "-f /c.json 1\n"


def test_a_log_is_cut_to_its_end_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as kernel:
        for n in range(1000):
            kernel.write(b"line %d\n" % n)
        shorten(path, over_bytes=10_000, keep_bytes=100)
        assert path.stat().st_size > 8000, "it is small enough"
        shorten(path, over_bytes=1000, keep_bytes=100)
        kernel.write(b"more\n")
    first, *_, last, more = path.read_text().splitlines()
    assert (first, last, more) == ("[roost: earlier lines were removed]", "line 999", "more")
    assert path.stat().st_size < 200


async def test_an_agent_stays_while_a_lease_exists_and_leaves_when_idle(runtime_dir: Path) -> None:
    async with agent_session(AgentSettings(cpus=4, idle_exit_s=allow_s(3))) as session:
        await session.reserve("k", linger_s=0.2)
        await session.launch("k")
        pid = agent_pid()
        await session.client.release("roost:k:1")
        await session.until("leaving")
    assert await asyncio.to_thread(wait_gone, pid)
    shutil.rmtree(agent_folder(runtime_dir))
