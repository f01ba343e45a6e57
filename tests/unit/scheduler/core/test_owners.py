"""The holder of a kernel, and the end of a kernel without one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeAgent, FakeWorld, fake_world, scheduler_on
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.messages import KernelUse, Owner
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import HeldElsewhere, LaunchError

SOON = Settings(
    owner_grace_s=0.05,
    place_grace_s=0.3,
    orphan_after_s=60,
    orphan_idle_after_s=60,
    orphan_idle_gpu_after_s=60,
)


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return two processes that stand for Jupyter Servers of one name."""
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            found.append(process)
        yield found


def owner(process: subprocess.Popen[bytes]) -> Owner:
    return Owner(
        user="ada",
        application="jupyter_server",
        host=socket.gethostname(),
        pid=process.pid,
        process_started_at=start_time(process.pid),
        can_adopt=True,
        server="ours",
    )


async def end(w: FakeWorld, process: subprocess.Popen[bytes], known: Owner) -> None:
    """Kill a server, and wait until the scheduler has noticed its end."""
    noticed = asyncio.Event()
    w.scheduler.owners.listen(noticed.set)
    process.kill()
    await noticed.wait()
    assert not w.scheduler.owners.is_alive(known)


async def test_a_kernel_is_held_by_one_server_and_passes_on_when_it_has_ended(
    tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    first, second = map(owner, servers)
    async with fake_world(tmp_path) as w:
        await w.start("k", owner=first)
        with pytest.raises(HeldElsewhere, match=f"held by jupyter_server .pid {first.pid} on"):
            await w.scheduler.adopt("k", second)
        assert (await w.scheduler.adopt("k", first)).owner == first
        assert w.scheduler.kernels()[0].is_held
        ended_at = time.monotonic()
        await end(w, servers[0], first)
        assert not w.scheduler.kernels()[0].is_held
        await asyncio.sleep(0.05)
        adopted = await w.scheduler.adopt("k", second)
        assert adopted.owner == second
        assert adopted.connection is not None
        assert adopted.unheld_s is not None
        assert 0.05 <= adopted.unheld_s <= time.monotonic() - ended_at
        assert w.scheduler.kernels()[0].is_held


async def test_the_time_without_a_server_goes_on_if_the_next_one_ends_at_once(
    tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    first, second = map(owner, servers)
    async with fake_world(tmp_path) as w:
        await w.start("k", owner=first)
        await end(w, servers[0], first)
        await asyncio.sleep(0.2)
        await w.scheduler.adopt("k", second)
        await end(w, servers[1], second)
        third = Owner(user="ada", host="elsewhere", pid=os.getpid(), process_started_at=0.1, can_adopt=True)
        adopted = await w.scheduler.adopt("k", third)
        assert adopted.unheld_s is not None
        assert adopted.unheld_s >= 0.2


async def test_nobody_knows_how_long_a_kernel_was_unheld_that_a_scheduler_finds(
    tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    first, second = map(owner, servers)
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        await w.start("k", owner=first)
    servers[0].kill()
    servers[0].wait()
    async with scheduler_on([agent]) as w:
        assert (await w.scheduler.adopt("k", second)).unheld_s is None
    await agent.close()


async def test_a_queued_start_keeps_its_place_for_the_next_server(
    tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    first, second = map(owner, servers)
    async with fake_world(tmp_path, settings=SOON, cpus=1) as w:
        await w.start("holder", cpus=1, owner=first)
        kept = w.start("kept", cpus=1, owner=first)
        left = w.start("left", cpus=1, owner=first)
        await w.told("queued", "left")
        await end(w, servers[0], first)
        assert (await w.scheduler.adopt("kept", second)).position == 1
        await w.told("cancelled", "left")
        assert w.kernel("kept").state == "queued"
        assert w.kernel("left").reason.startswith("the start of kernel left was taken back")
        await w.scheduler.stop("holder", 0)
        assert (await kept).owner == second
        await asyncio.wait([left])


@pytest.mark.parametrize(
    ("gpus", "state", "is_ended"), [(0, "idle", False), (1, "idle", True), (1, "busy", False)]
)
async def test_an_idle_kernel_that_nobody_holds_ends(
    tmp_path: Path, servers: list[subprocess.Popen[bytes]], gpus: int, state: str, is_ended: bool
) -> None:
    """Each check judges `k` first. The end of a later kernel therefore shows that `k` was judged."""
    settings = SOON.with_values(orphan_idle_gpu_after_s=0.2)
    first, second = map(owner, servers)
    async with fake_world(tmp_path, settings=settings, gpus=3) as w:
        await w.start("k", gpus=gpus, owner=first)
        await w.start("of the other server", gpus=1, owner=second)
        await w.start("last", gpus=1, owner=first)
        for name in ("k", "of the other server", "last"):
            shown = state if name == "k" else "idle"
            w.agent.use[name] = KernelUse(kernel_id=name, execution_state=shown, idle_s=30, quiet_s=30)
        await end(w, servers[1], second)
        await w.told("released", "of the other server")
        assert w.count("cull", "k") == 0, "its server lives"
        await end(w, servers[0], first)
        await w.told("released", "last")
        if is_ended:
            await w.told("released", "k")
            assert w.count("cull", "k") == 1
            assert "idle for" in w.kernel("k").reason
        else:
            assert w.count("cull", "k") == 0
            assert w.kernel("k").state == "running"


async def test_an_adopted_kernel_does_not_end(tmp_path: Path, servers: list[subprocess.Popen[bytes]]) -> None:
    first, second = map(owner, servers)
    async with fake_world(tmp_path, settings=SOON.with_values(orphan_idle_after_s=0.3)) as w:
        for name in ("k", "left"):
            await w.start(name, owner=first)
            w.agent.use[name] = KernelUse(kernel_id=name, execution_state="idle", idle_s=30, quiet_s=30)
        await end(w, servers[0], first)
        await w.scheduler.adopt("k", second)
        await w.told("released", "left")
        assert w.kernel("k").state == "running"


async def test_a_stop_that_had_to_wait_is_carried_out_by_the_next_scheduler(tmp_path: Path) -> None:
    async def read_due() -> object:
        return json.loads((tmp_path / "ends.json").read_text())

    agent = FakeAgent(tmp_path / "agent")
    async with scheduler_on([agent], folder=tmp_path) as w:
        await w.start("k")
        agent.fail("release")
        with pytest.raises(LaunchError, match="release fails"):
            await w.scheduler.stop("k", 0)
    agent.failures.clear()
    async with scheduler_on([agent], folder=tmp_path) as w:
        await w.told("released", "k")
        assert w.leases() == []
        await w.until_not(read_due)
    await agent.close()


async def test_a_script_does_not_become_the_owner_of_a_kernel_of_a_server_without_heirs(
    tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    gateway = replace(owner(servers[0]), can_adopt=False, server="")
    script = replace(owner(servers[1]), can_adopt=False, server="", application="script")
    async with fake_world(tmp_path) as w:
        await w.start("k", owner=gateway)
        assert (await w.scheduler.adopt("k", script)).owner == gateway
        with pytest.raises(HeldElsewhere, match="held by jupyter_server"):
            await w.scheduler.adopt("k", owner(servers[1]))
        await end(w, servers[0], gateway)
        assert (await w.scheduler.adopt("k", script)).owner == script


async def test_a_kernel_is_taken_from_a_program_only_on_purpose(
    tmp_path: Path, servers: list[subprocess.Popen[bytes]]
) -> None:
    program = replace(owner(servers[0]), can_adopt=False, server="", application="script")
    server = owner(servers[1])
    async with fake_world(tmp_path) as w:
        for kernel_id in ("k", "m"):
            await w.start(kernel_id, owner=program)
        with pytest.raises(HeldElsewhere, match=f"held by script .pid {program.pid} on"):
            await w.scheduler.adopt("k", server, takes_away=False)
        assert (await w.scheduler.adopt("k", server)).owner == server
        servers[0].kill()
        servers[0].wait()  # the scheduler need not have noticed it
        assert (await w.scheduler.adopt("m", server, takes_away=False)).owner == server
