"""Kernels whose starts are cancelled at the worst moments."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.machine.container_agent import LEASE, a_launch
from kit.machine.real_agent import as_it_is, no_limits
from kit.machine.tiny_kernel import TINY_ARGV
from roost.launchers.agent.launch import kernels
from roost.launchers.agent.launch.child_reaper import Reaper
from roost.launchers.agent.launch.kernels import Kernels, Prepare
from roost.launchers.agent.launch.place import OnNode
from roost.launchers.agent.machine.disk_room import DiskRoom
from roost.launchers.agent.warm.fork_report import read_report
from roost.launchers.agent.warm.zygote_pool import ZygotePool
from roost.launchers.daemon.open_files import raise_limit
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import (
    Connection,
    KernelProcess,
    Launch,
    Lease,
    Owner,
)
from roost.launchers.protocol.rpc import RemoteError
from roost.placement.model import Request
from roost.placement.model.json_codec import encode
from roost.testing.deadlines import allow_s

SLEEP = ("sleep", "60")


LATE = """
import json, os, signal, socket, sys, time

connection = json.load(open(sys.argv[1]))
address = connection["ip"], connection["shell_port"]
try:
    tries = int(open("tries").read())
except FileNotFoundError:
    tries = 0
open("tries", "w").write(str(tries + 1))
if tries < int(sys.argv[2]):
    reading, writing = os.pipe()
    if os.fork() == 0:  # another process, which is faster
        os.setsid()
        taken = socket.create_server(address)
        open(f"pid-{tries}", "w").write(str(os.getpid()))
        os.write(writing, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
servers = [socket.create_server(address), socket.create_server((connection["ip"], connection["iopub_port"]))]
signal.pause()
"""
"""A kernel whose shell port another process takes first, in as many tries as its second argument says."""


class CancelledAtTheEnd:
    """A starter that is cancelled in its last step, after it has recorded the process."""

    def __init__(self, _: ZygotePool, reaper: Reaper, on_started: Callable[..., None], *__: Any) -> None:
        self.reaper, self.on_started = reaper, on_started

    async def start(self, folder: Path, request: Launch, _: object) -> KernelProcess:
        child = subprocess.Popen(SLEEP, start_new_session=True)  # noqa: ASYNC220 - the reaper waits for it
        child.returncode = 0
        process = KernelProcess(
            kernel_id=request.kernel_id,
            launch_id=request.launch_id,
            lease_id=request.lease_id,
            pid=child.pid,
            process_started_at=start_time(child.pid),
            how="exec",
            connection=request.connection,
            launched_at=0.0,
        )
        self.on_started(process, self.reaper.exit_code(child.pid, is_ours=True))
        raise asyncio.CancelledError


async def test_a_start_cancelled_after_its_last_step_is_ended_by_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "Starter", CancelledAtTheEnd)
    launched: list[KernelProcess] = []
    exited: list[KernelProcess] = []
    room = DiskRoom(tmp_path, list)
    held = Kernels(
        tmp_path / "kernels",
        ZygotePool(),
        room,
        no_limits(),
        place=OnNode(AgentSettings()),
        prepare=as_it_is,
        on_launched=launched.append,
        on_exited=exited.append,
    )
    request = Launch(
        launch_id="launch",
        lease_id="lease",
        kernel_id="kernel",
        argv=SLEEP,
        env={},
        cwd="/",
        connection=Connection(),
    )
    lease = Lease(id="lease", kernel_id="kernel", owner=Owner(user="ada"), request=Request())
    try:
        assert (await held.launch(request, lease)).is_running
        assert held.runs_in(lease)
        assert not held.runs_in(replace(lease, id="earlier"))
        await held.release(replace(lease, id="earlier"), 1.0)
        assert not exited
        await held.release(lease, 1.0)
        assert [process.pid for process in exited] == [launched[0].pid]
    finally:
        await held.close()


def make_kernels(folder: Path, prepare: Prepare = as_it_is) -> Kernels:
    """Return an agent's `Kernels` in this folder, without limits. Nothing receives their events."""
    return Kernels(
        folder / "kernels",
        ZygotePool(),
        DiskRoom(folder, list),
        no_limits(),
        place=OnNode(AgentSettings()),
        prepare=prepare,
        on_launched=lambda _: None,
        on_exited=lambda _: None,
    )


@pytest.mark.parametrize("argv", [TINY_ARGV, ("no-such-program",)])
async def test_a_launch_is_prepared_once_and_answers_each_call_the_same(
    tmp_path: Path, argv: tuple[str, ...]
) -> None:
    prepared: list[str] = []

    async def prepare(launch: Launch, lease: Lease) -> tuple[Launch, tuple[str, ...]]:
        prepared.append(lease.id)
        await asyncio.sleep(0)
        return launch, ()

    held = make_kernels(tmp_path, prepare)
    try:
        calls = [held.launch(a_launch(argv), LEASE) for _ in range(2)]
        together = await asyncio.gather(*calls, return_exceptions=True)
        later = await asyncio.gather(held.launch(a_launch(argv), LEASE), return_exceptions=True)
        assert prepared == [LEASE.id]
        assert [repr(each) for each in together] == 2 * [repr(later[0])]
        assert isinstance(later[0], KernelProcess if argv == TINY_ARGV else RemoteError)
    finally:
        await held.release(LEASE, 0.0)
        await held.close()


async def test_a_release_ends_a_launch_that_is_still_prepared(tmp_path: Path) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def prepare(launch: Launch, lease: Lease) -> tuple[Launch, tuple[str, ...]]:
        begun.set()
        await never.wait()
        return launch, ()

    held = make_kernels(tmp_path, prepare)
    launching = asyncio.ensure_future(held.launch(a_launch(), LEASE))
    try:
        await asyncio.wait_for(begun.wait(), allow_s(10))
        await asyncio.wait_for(held.release(LEASE, 0.0), allow_s(10))
        await asyncio.wait([launching], timeout=allow_s(10))
        assert launching.cancelled()
        assert not held.runs_in(LEASE)
        assert list((tmp_path / "kernels").iterdir()) == []
    finally:
        await held.close()


@pytest.mark.parametrize(
    "damaged", ["[]", "7", '"x"', "{}", '{"pid": "x", "started_at": 1}', '{"pid": 7}', "{"]
)
async def test_a_damaged_file_does_not_end_the_adoption(tmp_path: Path, damaged: str) -> None:
    """The agent skips the damaged file, and still finds and ends the unfinished start in the next folder."""
    folder = tmp_path / "kernels"
    (folder / "1").mkdir(parents=True)
    (folder / "2").mkdir()
    (folder / "1" / "starting.json").write_text(damaged)
    child = subprocess.Popen(SLEEP, start_new_session=True)  # noqa: ASYNC220 - it must have a real pid
    noted = {"pid": child.pid, "started_at": start_time(child.pid)}
    (folder / "2" / "starting.json").write_text(json.dumps(noted))
    held = make_kernels(tmp_path)
    try:
        held.adopt([])
        assert child.wait(allow_s(60)) == -signal.SIGKILL
        assert list(folder.iterdir()) == []
    finally:
        await held.close()
        child.kill()


def record_kernels(folder: Path, pid: int, connection: Connection, ids: Sequence[str]) -> None:
    """Write the records of kernels that an earlier agent has started. All have the same process."""
    process = KernelProcess(
        kernel_id="",
        launch_id="launch",
        lease_id="lease",
        pid=pid,
        process_started_at=start_time(pid),
        how="exec",
        connection=connection,
        launched_at=0.0,
    )
    for kernel_id in ids:
        (folder / "kernels" / kernel_id).mkdir(parents=True)
        record = folder / "kernels" / kernel_id / "record.json"
        record.write_text(json.dumps(encode(replace(process, kernel_id=kernel_id))))


async def test_a_kernel_that_cannot_be_asked_for_its_state_is_adopted(tmp_path: Path) -> None:
    child = subprocess.Popen(SLEEP, start_new_session=True)  # noqa: ASYNC220 - it must have a real pid
    connection = Connection(
        transport="ipc", ip=str(tmp_path / "k"), key="secret", signature_scheme="hmac-of-another-time"
    )
    record_kernels(tmp_path, child.pid, connection, ["k"])
    held = make_kernels(tmp_path)
    try:
        held.adopt(["lease"])
        assert [kernel.is_running for kernel in held.list()] == [True]
        assert child.poll() is None
    finally:
        await held.close()
        child.kill()
        child.wait()


async def test_an_agent_follows_more_kernels_than_a_context_has_sockets_by_default(tmp_path: Path) -> None:
    child = subprocess.Popen(SLEEP, start_new_session=True)  # noqa: ASYNC220 - it must have a real pid
    ids = [str(number) for number in range(1_100)]
    record_kernels(tmp_path, child.pid, Connection(transport="ipc", ip=str(tmp_path / "k")), ids)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_limit()  # as an agent does
    held = make_kernels(tmp_path)
    try:
        held.adopt(["lease"])
        assert {kernel.kernel_id for kernel in held.list()} == set(ids)
    finally:
        await held.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        child.kill()
        child.wait()


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancellation_beside_the_last_report_is_not_lost(steps: int) -> None:
    """The cancellation arrives 0 to 5 steps of the event loop after the kernel's last report."""
    report, report_in = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report.setblocking(False)
    child = subprocess.Popen(SLEEP, start_new_session=True)  # noqa: ASYNC220 - it must have a real pid
    pids: list[int] = []
    try:
        reading = asyncio.ensure_future(
            read_report(report, started=0.0, timing_ms={}, deadline_s=10.0, on_pid=pids.append)
        )
        report_in.send(b'{"pid": %d}' % child.pid)
        while not pids:  # noqa: ASYNC110 - a step at a time
            await asyncio.sleep(0)
        report_in.send(b'{"ready": true}')
        for _ in range(steps):
            await asyncio.sleep(0)
        if reading.cancel():
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert child.wait(allow_s(60)) == -signal.SIGKILL
        else:
            assert (await reading) is not None
    finally:
        child.kill()
        child.wait()
        report.close()
        report_in.close()


@pytest.mark.parametrize("tries", [1, 2, 3])
async def test_a_kernel_whose_port_is_taken_meanwhile_gets_others(tmp_path: Path, tries: int) -> None:
    argv = (sys.executable, "-S", "-c", LATE, "{connection_file}", str(tries))
    request = replace(a_launch(argv), cwd=str(tmp_path))
    held = make_kernels(tmp_path)
    try:
        if tries < 3:
            process = await asyncio.wait_for(held.launch(request, LEASE), allow_s(60))
            assert process.is_running
        else:
            with pytest.raises(RemoteError, match="Address already in use"):
                await asyncio.wait_for(held.launch(request, LEASE), allow_s(60))
        assert (tmp_path / "tries").read_text() == str(min(3, tries + 1))
    finally:
        for file in tmp_path.glob("pid-*"):
            os.kill(int(file.read_text()), signal.SIGKILL)
        await held.release(LEASE, 0.0)
        await held.close()
